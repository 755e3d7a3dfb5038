//! Five nodes in containers: brought up, asked, and always taken down.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::admin::{Admin, Status};
use crate::clock;
use crate::docker::Project;

/// The nodes' names, which are also the services of the compose file.
pub(super) const NODES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];

/// The first three bytes of the addresses; other than the compose file's own, so that both can run.
const NET: &str = "10.213.45";
const PROJECT: &str = "marram-split-heal";
const IMAGE: &str = "marram-chaos:split-heal";
const POLL: Duration = Duration::from_millis(50);

/// One node under test.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) name: &'static str,
    pub(super) address: String,
    pub(super) container: String,
    pub(super) admin: Admin,
}

/// The compose project with its nodes; removed when dropped unless it is to be kept.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) project: Project,
    pub(super) members: Vec<Member>,
    /// When `docker-compose up` began.
    pub(super) began: Instant,
    keep: bool,
}

impl Cluster {
    /// The project, or why there cannot be one here.
    pub(super) async fn find(compose: &Path) -> Result<Project, String> {
        let environment = [("MARRAM_NET", NET), ("MARRAM_PROXY_PORT", ""), ("MARRAM_LOAD_FORMAT", "json")];
        let environment: BTreeMap<_, _> =
            environment.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Project::find(PROJECT, compose, IMAGE, environment).await
    }

    /// Builds the image and starts five containers, after removing what an earlier run may have left.
    pub(super) async fn start(project: Project, keep: bool) -> Result<Self> {
        project.remove();
        let mut cluster = Self { project, members: Vec::new(), began: clock::now(), keep: false };
        cluster.project.build().await.context("the image")?;
        cluster.began = clock::now();
        cluster.project.up().await.context("the containers")?;
        for (name, last) in NODES.into_iter().zip(11..) {
            let volume = cluster.project.volume(&format!("{name}-data")).await?;
            cluster.members.push(Member {
                name,
                address: format!("{NET}.{last}"),
                container: cluster.project.container(name).await?,
                admin: Admin::new(volume.join("node/admin.sock")),
            });
        }
        cluster.keep = keep;
        Ok(cluster)
    }

    /// The member of that name.
    pub(super) fn member(&self, name: &str) -> Result<&Member> {
        self.members.iter().find(|member| member.name == name).with_context(|| format!("no node {name}"))
    }

    /// The members of these names.
    pub(super) fn group(&self, names: &[&str]) -> Vec<Member> {
        self.members.iter().filter(|member| names.contains(&member.name)).cloned().collect()
    }

    /// Keeps every container's log below `folder`.
    pub(super) async fn save_logs(&self, folder: &Path) -> Result<()> {
        tokio::fs::create_dir_all(folder).await?;
        for name in NODES {
            tokio::fs::write(folder.join(format!("{name}.log")), self.project.logs(name).await?).await?;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.keep {
            println!("the cluster stays; remove it with: docker-compose -p {PROJECT} down -v  (in chaos/compose)");
        } else {
            self.project.remove();
        }
    }
}

/// The statuses of all `members`, asked at once; `None` for one that does not answer.
pub(super) async fn statuses(members: &[Member]) -> Vec<Option<Status>> {
    let mut asking = JoinSet::new();
    for (index, member) in members.iter().enumerate() {
        let admin = member.admin.clone();
        asking.spawn(async move { (index, admin.status().await.ok()) });
    }
    let mut answers = asking.join_all().await;
    answers.sort_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, status)| status).collect()
}

/// Asks `is_so` every 50 ms until it says yes; the time since `from`, or `None` after `give_up`.
pub(super) async fn until<F: Future<Output = bool>>(
    from: Instant,
    give_up: Duration,
    mut is_so: impl FnMut() -> F,
) -> Option<Duration> {
    let begin = clock::now();
    loop {
        if is_so().await {
            return Some(from.elapsed());
        }
        if begin.elapsed() > give_up {
            return None;
        }
        sleep(POLL).await;
    }
}

/// Whether every member counts `alive` members as alive and none as suspect.
pub(super) async fn all_see_alive(members: &[Member], alive: usize) -> bool {
    let seen = statuses(members).await;
    seen.iter().all(|status| {
        status.as_ref().is_some_and(|status| status.members.alive == alive && status.members.suspect == 0)
    })
}

/// Whether every member answers and has the same policy root and number of documents.
pub(super) async fn roots_equal(members: &[Member]) -> bool {
    let seen = statuses(members).await;
    let mut roots =
        seen.iter().map(|status| status.as_ref().map(|status| (&status.policy.root, status.policy.documents)));
    let Some(Some(first)) = roots.next() else { return false };
    roots.all(|root| root == Some(first))
}

/// Whether every member has a policy document of that name.
pub(super) async fn all_have(members: &[Member], name: &str) -> bool {
    let mut asking = JoinSet::new();
    for member in members {
        let (admin, name) = (member.admin.clone(), name.to_owned());
        asking.spawn(async move {
            admin.policies().await.is_ok_and(|documents| documents.iter().any(|document| document.name == name))
        });
    }
    asking.join_all().await.into_iter().all(|has| has)
}

/// Runs `build.sh` when a static binary is missing; it takes minutes.
///
/// # Errors
/// When the script fails; what it says has been printed.
pub async fn build_if_missing(compose: &Path) -> Result<()> {
    ensure!(
        compose.join("docker-compose.yml").is_file(),
        "{}: no docker-compose.yml; name the folder with --compose",
        compose.display()
    );
    if ["marram", "chaos"].iter().all(|name| compose.join("bin").join(name).is_file()) {
        return Ok(());
    }
    println!("building the static binaries (chaos/compose/build.sh)");
    let status = Command::new(compose.join("build.sh")).stdin(Stdio::null()).status().await.context("build.sh")?;
    if !status.success() {
        bail!("build.sh: {status}");
    }
    Ok(())
}
