//! What the pairs stand on: a folder, certificates made by openssl, programs that end with it.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use tests::has_program;

use crate::load::now;

/// Longest wait for a program to listen.
const LISTENS_MAX: Duration = Duration::from_secs(10);

/// A folder with one authority and one certificate, which both ends of every pair show each other.
#[derive(Debug)]
pub(crate) struct Ground {
    dir: tempfile::TempDir,
}

impl Ground {
    /// Makes the certificates.
    ///
    /// # Errors
    /// When there is no `openssl`, or it refuses.
    pub(crate) fn prepare() -> anyhow::Result<Self> {
        anyhow::ensure!(
            has_program("openssl"),
            "openssl is needed for the peers' certificates: apt-get install openssl"
        );
        let ground = Self { dir: tempfile::Builder::new().prefix("marram-peers-").tempdir()? };
        ground.openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=bench-ca -keyout ca.key -out ca.pem")?;
        ground.openssl(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=peer -keyout peer.key -out peer.csr",
        )?;
        ground.write("san.cnf", "subjectAltName=DNS:peer\n")?;
        ground.openssl(
            "x509 -req -in peer.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san.cnf -out peer.pem",
        )?;
        let both = fs::read_to_string(ground.path("peer.pem"))? + &fs::read_to_string(ground.path("peer.key"))?;
        ground.write("both.pem", &both)?;
        Ok(ground)
    }

    /// A file of the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The folder.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file of the folder and returns where it is.
    pub(crate) fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    fn openssl(&self, words: &str) -> anyhow::Result<()> {
        let output = Command::new("openssl").args(words.split(' ')).current_dir(self.dir()).output()?;
        anyhow::ensure!(output.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

/// A program of others in a process group of its own, ended with all its children when it is dropped.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
}

impl Program {
    /// Starts `command`; its output goes to the file `log`.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let file = fs::File::create(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { child })
    }

    /// Waits until it listens at `address`.
    ///
    /// # Errors
    /// When it ends, or does not listen in 10 s; with the end of its output in `log`.
    pub(crate) fn listens(&mut self, address: SocketAddr, log: &Path) -> anyhow::Result<()> {
        let began = now();
        while TcpStream::connect(address).is_err() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || began.elapsed() > LISTENS_MAX {
                let said = fs::read_to_string(log).unwrap_or_default();
                let last: Vec<&str> = said.lines().rev().take(3).collect();
                anyhow::bail!("nobody listens at {address}: {}", last.join(" | "));
            }
            tests::pause(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let group = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group {
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
        }
        self.child.wait().ok();
    }
}
