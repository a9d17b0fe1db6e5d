"""The main job on an S3 server that somebody else wrote: moto, with every signature checked.

Eight commits are made durable in a bucket, and each is restored from the bucket alone, byte for byte; a request with a
wrong secret is refused. Run by run.sh.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time

import boto3

COMMITS = 8


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, holds):
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.1)


def answers(port):
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def credentials(endpoint):
    """A user who may put, get and list. The server checks nobody until that many requests were made."""
    nobody = {"aws_access_key_id": "nobody", "aws_secret_access_key": "nobody", "region_name": "us-east-1"}
    make = lambda service: boto3.client(service, endpoint_url=endpoint, **nobody)
    make("s3").create_bucket(Bucket="bucket")
    iam = make("iam")
    iam.create_user(UserName="everwhen")
    allowed = {"Effect": "Allow", "Action": ["s3:PutObject", "s3:GetObject", "s3:ListBucket"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.put_user_policy(UserName="everwhen", PolicyName="put-get-list", PolicyDocument=policy)
    key = iam.create_access_key(UserName="everwhen")["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


def content(connection):
    """The bytes of the database, or its rows where Python is older than 3.11."""
    return connection.serialize() if hasattr(connection, "serialize") else list(connection.iterdump())


def content_of(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return content(connection)


def run(binary, folder, environment):
    def everwhen(*arguments):
        return subprocess.run([binary, *arguments], cwd=folder, env=environment, capture_output=True, text=True)

    writer = sqlite3.connect(os.path.join(folder, "app.db"), isolation_level=None)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB)")
    images = [content(writer)]
    command = [binary, "run", "app.db", "--state", "state", "--listen", "off", "--metrics", "off"]
    with open(os.path.join(folder, "daemon.log"), "w") as log:
        daemon = subprocess.Popen(command, cwd=folder, env=environment, stderr=log)
    try:

        def durable():
            status = everwhen("status", "app.db", "--state", "state", "--json")
            if daemon.poll() is not None:
                raise AssertionError(open(os.path.join(folder, "daemon.log")).read())
            if status.returncode:
                return False
            (database,) = json.loads(status.stdout)["databases"]
            at = (database["durable"] or {}).get("position")
            return at is not None and int(at.split("/")[1], 16) == len(images)

        until("the state found is durable", durable)
        for number in range(COMMITS):
            # One of them large enough to be sent in parts.
            size = 12_000_000 if number == 5 else 5_000
            writer.execute("INSERT INTO t(body) VALUES (randomblob(?))", (size,))
            images.append(content(writer))
        until("all commits are durable", durable)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(timeout=30) == 0
    finally:
        if daemon.poll() is None:
            daemon.kill()
    shutil.rmtree(os.path.join(folder, "state"))
    points = [json.loads(line) for line in everwhen("points", "app", "--json").stdout.splitlines()]
    assert len(points) == COMMITS + 1, points
    for number, (point, expected) in enumerate(zip(points, images)):
        to = os.path.join(folder, f"restored-{number}.db")
        answer = everwhen("restore", "app", "--position", point["position"], "--to", to, "--json")
        assert answer.returncode == 0, answer
        assert content_of(to) == expected, point
    answer = everwhen("verify", "--deep", "--json")
    assert answer.returncode == 0, answer
    environment["AWS_SECRET_ACCESS_KEY"] = "wrong" * 8
    answer = everwhen("verify", "--json")
    assert answer.returncode == 6, answer
    assert "SignatureDoesNotMatch" in answer.stderr, answer


def serve(port):
    """The server, with its check of signatures mended: it takes a request's address as it was sent, not as decoded."""
    import flask
    from moto import server
    from moto.iam.access_control import IAMRequestBase

    init = IAMRequestBase.__init__

    def as_sent(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self._path = flask.request.environ["RAW_URI"]

    IAMRequestBase.__init__ = as_sent
    server.main(["-H", "127.0.0.1", "-p", port])


def main(binary):
    folder = tempfile.mkdtemp(prefix="everwhen-s3-")
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    checked = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "4"}
    command = [sys.executable, __file__, "--serve", str(port)]
    with open(os.path.join(folder, "moto.log"), "w") as log:
        server = subprocess.Popen(command, env=checked, stdout=log, stderr=log)
    try:
        until("the server answers", lambda: answers(port))
        key, secret = credentials(endpoint)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "EVERWHEN_"))}
        environment = {
            **clean,
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "EVERWHEN_STORE": "s3://bucket/backups",
            "EVERWHEN_STATE": os.path.join(folder, "state"),
        }
        run(binary, folder, environment)
    except BaseException:
        print(f"FAIL  the main job on moto's S3: the logs are in {folder}")
        raise
    finally:
        server.kill()
        server.wait()
    shutil.rmtree(folder)
    print("ok    the main job on moto's S3, with signatures checked")


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1] == "--serve" else main(os.path.abspath(sys.argv[1]))
