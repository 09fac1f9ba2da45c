//! The sockets of the UAPI and of the admin API: made so that nobody else can use them at any moment, and taken away
//! only while they are still ours.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::net::name::InterfaceName;
use crate::sys::process::with_umask;

/// Where `wg` looks for `IFNAME.sock`.
pub const DIRECTORY: &str = "/var/run/wireguard";

/// Leaves the socket file mode 0600.
const SOCKET_UMASK: libc::mode_t = 0o177;

/// A listening socket, and the file that names it.
#[derive(Debug)]
pub struct LocalSocket {
    listener: UnixListener,
    /// `None` for an inherited socket that no file names.
    file: Option<SocketFile>,
}

/// A file, told from a later one at the same place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn at(path: PathBuf) -> io::Result<Self> {
        let meta = fs::symlink_metadata(&path)?;
        Ok(Self { path, device: meta.dev(), inode: meta.ino() })
    }

    fn is_there(&self) -> bool {
        match fs::symlink_metadata(&self.path) {
            Ok(meta) => meta.dev() == self.device && meta.ino() == self.inode,
            // A process that has become another user may not look into the directory any more.
            Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
        }
    }
}

impl LocalSocket {
    /// Binds `directory/name.sock`, mode 0600; makes the directory, mode 0700, if it is missing. A socket that nobody
    /// listens on is replaced. Call it after forking: whoever drops the value first takes the file away.
    ///
    /// # Errors
    /// EADDRINUSE if somebody listens there, EEXIST if something that is no socket is there, and what the file
    /// system says.
    pub fn bind(directory: &Path, name: &InterfaceName) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        Self::bind_at(socket_path(directory, name), None)
    }

    /// Binds this path in a directory that is there, mode 0600; with a group, by its number, 0660 and the group's.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub fn bind_at(path: PathBuf, group: Option<u32>) -> io::Result<Self> {
        remove_stale(&path)?;
        let listener = with_umask(SOCKET_UMASK, || UnixListener::bind(&path))?;
        listener.set_nonblocking(true)?;
        let socket = Self { listener, file: Some(SocketFile::at(path.clone())?) };
        if group.is_some() {
            chown(&path, None, group)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o660))?;
        }
        Ok(socket)
    }

    /// Takes a listening socket that the parent process made (`WG_UAPI_FD`).
    ///
    /// # Errors
    /// EINVAL if it is no listening unix stream socket.
    pub fn inherit(fd: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(fd);
        let stream = socket.domain()? == Domain::UNIX && socket.r#type()? == Type::STREAM;
        if !stream || !socket.is_listener()? {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let listener = UnixListener::from(OwnedFd::from(socket));
        listener.set_nonblocking(true)?;
        let path = listener.local_addr()?.as_pathname().map(Path::to_path_buf);
        Ok(Self { listener, file: path.and_then(|path| SocketFile::at(path).ok()) })
    }

    /// False once the file is gone or another one: how a user asks us to end.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.file.as_ref().is_none_or(SocketFile::is_there)
    }

    /// The same socket for a runtime; the file stays with `self`.
    ///
    /// # Errors
    /// Out of descriptors, or outside a runtime.
    pub fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.try_clone()?)
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        if let Some(file) = self.file.as_ref().filter(|file| file.is_there())
            && let Err(error) = fs::remove_file(&file.path)
        {
            // As when the process has become another user: a caretaker removes it, or the next start.
            tracing::debug!(path = %file.path.display(), %error, "a socket stays behind");
        }
    }
}

/// `directory/name.sock`.
#[must_use]
pub fn socket_path(directory: &Path, name: &InterfaceName) -> PathBuf {
    directory.join(format!("{name}.sock"))
}

/// Removes a socket that nobody listens on; none there is as good.
///
/// # Errors
/// EADDRINUSE if somebody listens there, EEXIST if something that is no socket is there, and what the file system says.
pub fn remove_stale(path: &Path) -> io::Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        meta => meta?,
    };
    if !meta.file_type().is_socket() {
        return Err(io::Error::from_raw_os_error(libc::EEXIST));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Connected, or EAGAIN: somebody is there, with a full backlog.
        _ => Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
    }
}
