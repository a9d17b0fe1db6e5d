"""The API as another toolchain sees it: Python's grpcio against a real daemon and a real database.

Every check is a function named as a sentence; each gets the same scene: a daemon that protects `app.db`, into which
forty rows were committed one by one. Run by run.sh.
"""

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone

import grpc
from everwhen.v1 import everwhen_pb2 as pb
from everwhen.v1 import everwhen_pb2_grpc as rpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

ROWS = 40


class Scene:
    """A folder with a database, a daemon, and both of its doors."""

    def __init__(self, binary, folder):
        self.binary = binary
        self.folder = folder
        self.database = os.path.join(folder, "app.db")
        self.port = free_port()
        self.log = open(os.path.join(folder, "daemon.log"), "w")
        writer = sqlite3.connect(self.database, isolation_level=None)
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, at TEXT, body BLOB)")
        self.writer = writer
        command = [binary, "run", self.database, "--listen", f"127.0.0.1:{self.port}", "--metrics", "off"]
        self.daemon = subprocess.Popen(command, stderr=self.log)
        self.tcp = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        grpc.channel_ready_future(self.tcp).result(timeout=20)
        self.api = rpc.EverwhenStub(self.tcp)
        # What is there when protection begins is one restore point; every commit from here on is one of its own.
        self.api.WaitDurable(pb.WaitDurableRequest(database="app", timeout_ms=20_000))

    def write(self, rows):
        for _ in range(rows):
            self.writer.execute("INSERT INTO t(at, body) VALUES (datetime('now'), randomblob(200))")

    def count(self, path=None):
        with contextlib.closing(sqlite3.connect(path or self.database)) as connection:
            return connection.execute("SELECT count(*) FROM t").fetchone()[0]

    def path(self, name):
        return os.path.join(self.folder, name)

    def stop(self):
        self.tcp.close()
        self.daemon.send_signal(signal.SIGTERM)
        code = self.daemon.wait(timeout=30)
        assert code == 0, f"the daemon ended with {code}"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stamp(moment):
    time_message = Timestamp()
    time_message.FromDatetime(moment)
    return time_message


def failure(call, *arguments, **named):
    """The failure of a call: its gRPC code and its ErrorDetail."""
    try:
        answer = call(*arguments, **named)
        if hasattr(answer, "__next__"):
            list(answer)
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)
        assert status is not None, f"no details in {error}"
        (packed,) = status.details
        detail = pb.ErrorDetail()
        assert packed.Unpack(detail), packed.type_url
        assert detail.chain, detail
        return error.code(), detail
    raise AssertionError("the call should have failed")


def the_database_is_listed(scene):
    (database,) = scene.api.ListDatabases(pb.ListDatabasesRequest()).databases
    assert database.name == "app" and database.protected and len(database.id) == 16, database
    assert os.path.samefile(database.path, scene.database), database


def waiting_makes_everything_durable(scene):
    answer = scene.api.WaitDurable(pb.WaitDurableRequest(database="app", timeout_ms=20_000))
    (status,) = scene.api.GetStatus(pb.GetStatusRequest()).databases
    assert status.durable.position >= answer.position, (status, answer)
    assert status.captured.position == status.durable.position, status
    assert status.lag_ms == 0, status


def status_tells_health_and_daemon(scene):
    answer = scene.api.GetStatus(pb.GetStatusRequest(database=scene.database))
    (status,) = answer.databases
    assert status.health == pb.HEALTH_OK and not status.reasons, status
    assert status.transactions_total >= ROWS, status
    assert answer.daemon.pid == scene.daemon.pid, answer.daemon
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    assert timedelta(0) <= now - status.durable.time.ToDatetime() < timedelta(minutes=1), status.durable


def every_commit_is_a_point(scene):
    parts = scene.api.ListPoints(pb.ListPointsRequest(database="app"))
    points = [point for part in parts for point in part.points]
    assert len(points) >= ROWS, len(points)
    assert [p.position for p in points] == sorted(p.position for p in points)
    middle = points[len(points) // 2]
    bounded = pb.ListPointsRequest(database="app", to=middle.time)
    upto = [point for part in scene.api.ListPoints(bounded) for point in part.points]
    assert upto[-1].position >= middle.position and len(upto) < len(points), (upto[-1], middle)


def history_has_a_window_and_a_base(scene):
    history = scene.api.GetHistory(pb.GetHistoryRequest(database="app"))
    assert len(history.windows) == 1 and not history.gaps, history
    assert len(history.timelines) == 1 and history.bases and history.segments >= 1, history
    assert history.latest.position, history


def points_of(scene):
    parts = scene.api.ListPoints(pb.ListPointsRequest(database="app"))
    return [point for part in parts for point in part.points]


def a_plan_names_what_it_reads(scene):
    point = points_of(scene)[-5]
    target = pb.Target(position=point.position)
    plan = scene.api.PlanRestore(pb.PlanRestoreRequest(database="app", target=target)).plan
    assert plan.point.position == point.position and plan.point.time == point.time, plan
    assert plan.base and plan.bytes > 0 and plan.image_bytes > 0 and len(plan.state) == 16, plan


def a_time_resolves_to_the_last_commit_before_it(scene):
    point = points_of(scene)[-3]
    moment = point.time.ToDatetime() + timedelta(microseconds=1)
    target = pb.Target(time=stamp(moment))
    found = scene.api.ResolvePoint(pb.ResolvePointRequest(database="app", target=target))
    assert found.point.position >= point.position, (found, point)


def a_restore_streams_its_progress_and_ends_in_a_report(scene):
    points = points_of(scene)
    to = scene.path("restored.db")
    target = pb.Target(position=points[-11].position)
    events = list(scene.api.Restore(pb.RestoreRequest(database="app", target=target, to=to)))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "plan" and kinds[-1] == "report" and set(kinds[1:-1]) <= {"progress"}, kinds
    report = events[-1].report
    assert report.path == to and report.bytes == os.path.getsize(to), report
    assert report.proof.state == events[0].plan.state and report.proof.how, report
    assert scene.count(to) == scene.count() - 10


def an_existing_target_is_refused(scene):
    to = scene.path("precious")
    with open(to, "w") as file:
        file.write("precious")
    code, detail = failure(scene.api.Restore, pb.RestoreRequest(database="app", target=latest(), to=to))
    assert code == grpc.StatusCode.FAILED_PRECONDITION, code
    assert detail.kind in (pb.ERROR_KIND_REFUSED, pb.ERROR_KIND_TARGET_UNFIT), detail
    with open(to) as file:
        assert file.read() == "precious"


def latest():
    return pb.Target(latest=pb.Latest())


def a_time_before_history_has_a_neighbour(scene):
    target = pb.Target(time=stamp(datetime(2001, 1, 1)))
    request = pb.PlanRestoreRequest(database="app", target=target)
    code, detail = failure(scene.api.PlanRestore, request)
    assert code == grpc.StatusCode.NOT_FOUND and detail.kind == pb.ERROR_KIND_NO_SUCH_POINT, (code, detail)
    assert detail.nearest_after.position == points_of(scene)[0].position, detail
    assert not detail.HasField("nearest_before") and detail.advice, detail


def a_database_nobody_knows_is_not_found(scene):
    code, detail = failure(scene.api.GetHistory, pb.GetHistoryRequest(database="nobody"))
    assert code == grpc.StatusCode.NOT_FOUND and detail.kind == pb.ERROR_KIND_NO_SUCH_POINT, (code, detail)


def a_request_without_a_target_is_a_mistake(scene):
    code, detail = failure(scene.api.PlanRestore, pb.PlanRestoreRequest(database="app"))
    assert code == grpc.StatusCode.INVALID_ARGUMENT and detail.kind == pb.ERROR_KIND_USAGE, (code, detail)
    bad = pb.PlanRestoreRequest(database="app", target=pb.Target(position="1/1"))
    code, detail = failure(scene.api.PlanRestore, bad)
    assert code == grpc.StatusCode.INVALID_ARGUMENT, (code, detail)


def waiting_for_what_never_comes_ends_in_time(scene):
    request = pb.WaitDurableRequest(database="app", position="1/00000000ffffffff", timeout_ms=300)
    began = time.monotonic()
    code, detail = failure(scene.api.WaitDurable, request)
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED and detail.kind == pb.ERROR_KIND_FAILED, (code, detail)
    assert time.monotonic() - began < 5


def a_cancelled_restore_leaves_nothing(scene):
    to = scene.path("cancelled.db")
    call = scene.api.Restore(pb.RestoreRequest(database="app", target=latest(), to=to))
    next(call)
    call.cancel()
    time.sleep(1)
    left = [name for name in os.listdir(scene.folder) if "cancelled.db" in name]
    # It may have been done before the cancel came: then it is whole.
    assert left in ([], ["cancelled.db"]), left
    if left:
        assert scene.count(to) == scene.count()


def a_database_can_be_added_and_removed(scene):
    path = scene.path("second.db")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t(x)")
    # This daemon has no store for all of its databases: it would not know of a further one at its next start.
    code, detail = failure(scene.api.AddDatabase, add_request(path))
    assert code == grpc.StatusCode.FAILED_PRECONDITION and detail.kind == pb.ERROR_KIND_REFUSED, (code, detail)
    assert not os.path.exists(path + ".everwhen")
    code, detail = failure(scene.api.RemoveDatabase, pb.RemoveDatabaseRequest(database="app"))
    assert code == grpc.StatusCode.FAILED_PRECONDITION and detail.kind == pb.ERROR_KIND_REFUSED, (code, detail)
    port = free_port()
    command = [scene.binary, "run", "--store", scene.path("shared"), "--state", scene.path("shared-state")]
    command += ["--listen", f"127.0.0.1:{port}", "--metrics", "off"]
    daemon = subprocess.Popen(command, stderr=scene.log)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=20)
            api = rpc.EverwhenStub(channel)
            added = api.AddDatabase(add_request(path)).database
            assert added.name == "two" and added.protected, added
            api.WaitDurable(pb.WaitDurableRequest(database="two", timeout_ms=20_000))
            removed = api.RemoveDatabase(pb.RemoveDatabaseRequest(database="two")).database
            assert not removed.protected, removed
    finally:
        daemon.terminate()
        daemon.wait(timeout=20)


def add_request(path):
    request = pb.AddDatabaseRequest(path=path, name="two")
    # `class` is a word of Python's own.
    setattr(request, "class", "sandbox")
    return request


def the_unix_socket_serves_the_same(scene):
    path = os.path.join(scene.folder, "app.db.everwhen", "local", "api.sock")
    # grpcio would send the path as the authority, which is none by the standard, and HTTP/2 servers refuse it.
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{path}", options=options) as channel:
        (database,) = rpc.EverwhenStub(channel).ListDatabases(pb.ListDatabasesRequest()).databases
        assert database.name == "app", database
    assert oct(os.stat(path).st_mode & 0o777) == "0o600"


def health_is_served(scene):
    stub = health_pb2_grpc.HealthStub(scene.tcp)
    for service in ("", "everwhen.v1.Everwhen"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, (service, answer)


def reflection_describes_the_api(scene):
    database = ProtoReflectionDescriptorDatabase(scene.tcp)
    services = database.get_services()
    assert {"everwhen.v1.Everwhen", "grpc.health.v1.Health"} <= set(services), services
    file = database.FindFileContainingSymbol("everwhen.v1.Everwhen")
    methods = {method.name for method in file.service[0].method}
    assert methods == {method.name for method in pb.DESCRIPTOR.services_by_name["Everwhen"].methods}, methods


CHECKS = [
    the_database_is_listed,
    waiting_makes_everything_durable,
    status_tells_health_and_daemon,
    every_commit_is_a_point,
    history_has_a_window_and_a_base,
    a_plan_names_what_it_reads,
    a_time_resolves_to_the_last_commit_before_it,
    a_restore_streams_its_progress_and_ends_in_a_report,
    an_existing_target_is_refused,
    a_time_before_history_has_a_neighbour,
    a_database_nobody_knows_is_not_found,
    a_request_without_a_target_is_a_mistake,
    waiting_for_what_never_comes_ends_in_time,
    a_cancelled_restore_leaves_nothing,
    the_unix_socket_serves_the_same,
    health_is_served,
    reflection_describes_the_api,
    a_database_can_be_added_and_removed,
]


def main(binary):
    folder = tempfile.mkdtemp(prefix="everwhen-grpc-")
    scene = None
    failed = 0
    try:
        scene = Scene(binary, folder)
        scene.write(ROWS)
        for check in CHECKS:
            try:
                check(scene)
                print(f"ok    {check.__name__.replace('_', ' ')}")
            except Exception as error:
                failed += 1
                print(f"FAIL  {check.__name__.replace('_', ' ')}: {type(error).__name__}: {error}")
        scene.writer.close()
        scene.stop()
    finally:
        if scene and scene.daemon.poll() is None:
            scene.daemon.kill()
        if failed:
            print(f"the daemon's log is in {folder}/daemon.log")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
