//! The daemon's doors: TCP on loopback, unix sockets.
//!
//! There is no authentication yet, so an address that other machines can reach is refused unless it was asked for by
//! name. A default port that is taken is no failure: the socket in the state folder is always there.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use everwhen_engine::error::ErrorKind;
use tokio::net::{TcpListener, UnixListener};

use crate::client::ShortPath;
use crate::config::Door;
use crate::failure::Failure;

/// Where the API is served when nobody says.
pub(crate) const API: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7437);
/// Where metrics are served when nobody says.
pub(crate) const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7438);

/// Opens a TCP door; `None` when it shall stay shut, or when only a default was meant and the port is taken.
pub(crate) async fn tcp(
    what: &str,
    door: Door,
    usual: SocketAddr,
    beyond_loopback: bool,
) -> Result<Option<TcpListener>, Failure> {
    let (address, asked) = match door {
        Door::Off => return Ok(None),
        Door::Implicit => (usual, false),
        Door::At(address) => (address, true),
    };
    if !address.ip().is_loopback() && !beyond_loopback {
        return Err(Failure::new(
            ErrorKind::Refused,
            format!(
                "{what} at {address} could be reached from other machines, and there is no authentication"
            ),
        )
        .advise("listen on 127.0.0.1 and put a tunnel or proxy before it, or say --beyond-loopback"));
    }
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if !asked => {
            tracing::warn!("{what}: {address} cannot be had ({error}); going on without it");
            Ok(None)
        }
        Err(error) => Err(Failure::io(format!("{what}: cannot listen on {address}"), &error)
            .advise("choose another port, or \"off\"")),
    }
}

/// A unix socket. Its file goes when this is dropped.
pub(crate) struct Socket {
    pub(crate) listener: Option<UnixListener>,
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Opens a unix socket for this user only. What a dead daemon left there is replaced; a socket that answers is not.
pub(crate) async fn socket(path: &Path) -> Result<Socket, Failure> {
    let doing = || format!("cannot listen on {}", path.display());
    let near = ShortPath::of(path).map_err(|error| Failure::io(doing(), &error))?;
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(Failure::new(
                ErrorKind::Refused,
                format!("{}: a file that is no socket is there", doing()),
            )
            .advise("move it away, or name another path"));
        }
        Ok(_) if tokio::net::UnixStream::connect(&near.path).await.is_ok() => {
            return Err(Failure::new(
                ErrorKind::Refused,
                format!("{}: another process answers there", doing()),
            )
            .advise("stop it, or name another path"));
        }
        Ok(_) => std::fs::remove_file(path).map_err(|error| Failure::io(doing(), &error))?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(&near.path).map_err(|error| {
        Failure::io(doing(), &error).advise("name a path in a folder that is there and can be written")
    })?;
    let socket = Socket { listener: Some(listener), path: path.to_owned() };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|error| Failure::io(doing(), &error))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn beyond_loopback_must_be_said() {
        let door = Door::At("0.0.0.0:0".parse().unwrap());
        assert_eq!(tcp("api", door, API, false).await.unwrap_err().kind, ErrorKind::Refused);
        assert!(tcp("api", door, API, true).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn only_a_port_that_was_asked_for_must_be_had() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        assert!(tcp("api", Door::Implicit, address, false).await.unwrap().is_none());
        assert!(tcp("api", Door::At(address), API, false).await.is_err());
        assert!(tcp("api", Door::Off, API, false).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("api.sock");
        let live = socket(&path).await.unwrap();
        assert_eq!(socket(&path).await.err().unwrap().kind, ErrorKind::Refused);
        drop(live);
        assert!(!path.exists());
        std::os::unix::net::UnixListener::bind(ShortPath::of(&path).unwrap().path).unwrap();
        assert!(path.exists(), "the file of a dead socket stays");
        drop(socket(&path).await.unwrap());
        std::fs::write(&path, "mine").unwrap();
        assert!(socket(&path).await.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }
}
