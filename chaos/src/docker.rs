//! The compose project under test: the few verbs a scenario needs, each one call of `docker-compose` or `docker`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command as StdCommand, Output, Stdio};

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};

/// One compose project.
#[derive(Debug)]
pub struct Project {
    name: String,
    folder: PathBuf,
    environment: BTreeMap<String, String>,
    compose: &'static [&'static str],
    image: String,
}

impl Project {
    /// The project `name` of the compose file in `folder`, with `image` as the tag of its image and `environment` for
    /// the variables of the file. `None` with the reason when no engine with docker-compose answers.
    ///
    /// # Errors
    /// The reason, in one line.
    pub async fn find(
        name: &str,
        folder: &Path,
        image: &str,
        mut environment: BTreeMap<String, String>,
    ) -> Result<Self, String> {
        let engine = output(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"])).await;
        if let Err(error) = engine {
            return Err(format!("no Docker engine answers ({})", cause(&error)));
        }
        let mut compose = None;
        for candidate in [&["docker-compose"][..], &["docker", "compose"][..]] {
            let mut command = Command::new(candidate.first().copied().unwrap_or_default());
            if output(command.args(candidate.get(1..).unwrap_or_default()).arg("version")).await.is_ok() {
                compose = Some(candidate);
                break;
            }
        }
        let compose = compose.ok_or("a Docker engine answers, docker-compose does not")?;
        environment.insert("MARRAM_IMAGE".to_owned(), image.to_owned());
        Ok(Self { name: name.to_owned(), folder: folder.to_owned(), environment, compose, image: image.to_owned() })
    }

    /// Builds the image.
    ///
    /// # Errors
    /// When the engine refuses.
    pub async fn build(&self) -> Result<()> {
        let mut command = Command::new("docker");
        output(command.args(["build", "--quiet", "--tag", &self.image]).arg(&self.folder)).await.map(drop)
    }

    /// Creates and starts everything.
    ///
    /// # Errors
    /// When the engine refuses, for instance because the network's addresses are taken.
    pub async fn up(&self) -> Result<()> {
        output(self.compose().args(["up", "--detach", "--no-build"])).await.map(drop)
    }

    /// The container of a service.
    ///
    /// # Errors
    /// When there is none.
    pub async fn container(&self, service: &str) -> Result<String> {
        let id = output(self.compose().args(["ps", "--quiet", service])).await?;
        let id = id.trim();
        if id.is_empty() {
            bail!("service {service} has no container");
        }
        Ok(id.to_owned())
    }

    /// Where the volume `volume` of this project is on the host.
    ///
    /// # Errors
    /// When there is none.
    pub async fn volume(&self, volume: &str) -> Result<PathBuf> {
        let name = format!("{}_{volume}", self.name);
        let mut command = Command::new("docker");
        let place = output(command.args(["volume", "inspect", "--format", "{{.Mountpoint}}", &name])).await?;
        Ok(PathBuf::from(place.trim()))
    }

    /// SIGKILL to the container's first process, and with it to all.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(&self, container: &str) -> Result<()> {
        output(Command::new("docker").args(["kill", "--signal", "KILL", container])).await.map(drop)
    }

    /// Starts a stopped container.
    ///
    /// # Errors
    /// When the engine refuses.
    pub async fn start(&self, container: &str) -> Result<()> {
        output(Command::new("docker").args(["start", container])).await.map(drop)
    }

    /// When the container's first process last started, RFC 3339.
    ///
    /// # Errors
    /// When there is no such container.
    pub async fn started_at(&self, container: &str) -> Result<String> {
        let mut command = Command::new("docker");
        let time = output(command.args(["inspect", "--format", "{{.State.StartedAt}}", container])).await?;
        Ok(time.trim().to_owned())
    }

    /// Follows what a container writes, from its begin; the child is killed when dropped. Standard output carries the
    /// container's, standard error the container's.
    ///
    /// # Errors
    /// When docker does not start.
    pub fn follow(&self, container: &str) -> Result<Child> {
        Command::new("docker")
            .args(["logs", "--follow", container])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("docker logs")
    }

    /// Everything a service has written, both streams.
    ///
    /// # Errors
    /// When there is no such service.
    pub async fn logs(&self, service: &str) -> Result<String> {
        output(self.compose().args(["logs", "--no-color", service])).await
    }

    /// Removes containers, network, volumes and the image's tag. Blocks, so that it can run while a stack unwinds; does
    /// as much as it can.
    pub fn remove(&self) {
        let (program, first) = self.compose_parts();
        let mut down = StdCommand::new(program);
        down.args(first).args(["down", "--volumes", "--remove-orphans", "--timeout", "3"]);
        down.current_dir(&self.folder).envs(&self.environment);
        let mut untag = StdCommand::new("docker");
        untag.args(["image", "rm", "--force", &self.image]);
        for mut command in [down, untag] {
            match command.stdin(Stdio::null()).output() {
                // There is no image before the first build; older engines call that an error even with --force.
                Ok(done) if !done.status.success() && !is_missing_image(&done) => {
                    eprintln!("warning: {command:?}: {}", String::from_utf8_lossy(&done.stderr).trim());
                }
                Ok(_) => {}
                Err(error) => eprintln!("warning: {command:?}: {error}"),
            }
        }
    }

    fn compose(&self) -> Command {
        let (program, first) = self.compose_parts();
        let mut command = Command::new(program);
        command.args(first).current_dir(&self.folder).envs(&self.environment);
        command
    }

    fn compose_parts(&self) -> (&'static str, Vec<String>) {
        let (program, rest) = self.compose.split_first().map_or(("docker-compose", &[][..]), |(p, rest)| (*p, rest));
        let project = ["--project-name", &self.name].map(str::to_owned);
        (program, rest.iter().map(|&word| word.to_owned()).chain(project).collect())
    }
}

fn is_missing_image(done: &Output) -> bool {
    String::from_utf8_lossy(&done.stderr).to_lowercase().contains("no such image")
}

/// Runs to the end; standard output on success, otherwise an error with what it said.
async fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{:?}", command.as_std());
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.with_context(|| shown.clone())?;
    finished(&shown, &output)
}

fn finished(shown: &str, output: &Output) -> Result<String> {
    if !output.status.success() {
        bail!("{shown}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The innermost cause, as one line.
fn cause(error: &anyhow::Error) -> String {
    let text = error.root_cause().to_string();
    let last = text.rsplit(": ").next().unwrap_or_default();
    last.lines().next().unwrap_or_default().to_owned()
}
