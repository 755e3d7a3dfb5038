//! What can go wrong with identities, certificates and tokens on this machine.

use std::io;
use std::path::PathBuf;

use super::name::NameFault;
use super::refusal::Refusal;

/// A fault in the files, arguments or certificates of this node. Nothing was changed unless the variant says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// Reading or writing failed; files are replaced whole, so old content is still there.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others on this machine could read (or replace) a file or folder that holds secrets.
    #[error("{}: mode {mode:04o} lets others in; run `chmod {wanted:o} {}`", path.display(), path.display())]
    Mode {
        /// The file or folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The permission bits it has to have.
        wanted: u32,
    },
    /// The folder has no identity. `init` makes a mesh in it, `join` makes it a member of one.
    #[error("{}: no identity here; `init` or `join` makes one", .0.display())]
    NoIdentity(PathBuf),
    /// The folder already has an identity, which is never overwritten.
    #[error("{}: already holds an identity; choose another folder", .0.display())]
    IdentityExists(PathBuf),
    /// A sealed root key lies in the folder; it may be the only copy of another mesh's and is never overwritten.
    #[error("{}: a sealed root key already lies here; move it away or choose another folder", .0.display())]
    RootExists(PathBuf),
    /// A file is not what its name says. Restore it, or move the folder away and join again.
    #[error("{}: {fault}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: FileFault,
    },
    /// The mesh name does not fit.
    #[error("mesh name `{name}` {fault}")]
    MeshName {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        fault: NameFault,
    },
    /// The node name does not fit.
    #[error("node name `{name}` {fault}")]
    NodeName {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        fault: NameFault,
    },
    /// The name of a service or its namespace does not fit.
    #[error("service name `{name}` {fault}")]
    ServiceName {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        fault: NameFault,
    },
    /// The passphrase for the root key is too short to be worth the name.
    #[error("the root passphrase is shorter than {0} bytes")]
    PassphraseTooShort(usize),
    /// Wrong recovery code or passphrase, or the sealed file was altered. Which of both cannot be told.
    #[error("the root key does not open: wrong recovery code or passphrase, or an altered file")]
    RootStaysSealed,
    /// Only nodes with the role `admit` hold the admission key.
    #[error("this node may not admit newcomers: it does not hold the admission key (role admit)")]
    NotAdmitting,
    /// A token has to live for at least a second and at most 30 days.
    #[error("a token's life of {0} s is outside 1 s to 30 days")]
    TokenLife(u64),
    /// A token has to have at least one use and at most 1,000.
    #[error("a token with {0} uses is outside 1 to 1,000")]
    TokenUses(u32),
    /// A token carries at least one and at most 8 addresses of nodes that redeem it, each `host:port`.
    #[error("a token needs 1 to 8 addresses, each as host:port; got `{0}`")]
    TokenSeeds(String),
    /// So many tokens are alive that another one would only help to lose track.
    #[error("{0} tokens are alive already; delete some from the folder `tokens`")]
    TooManyTokens(usize),
    /// This node's own certificate has ended, so it cannot issue leaves for itself.
    #[error("the certificate of this node ended at {not_after_unix} (seconds since 1970); join the mesh again")]
    NodeExpired {
        /// When it ended, in seconds since 1970.
        not_after_unix: u64,
    },
    /// The leaf source was made from another identity.
    #[error("the leaf belongs to another node than the identity")]
    ForeignLeaf,
    /// A chain was refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The certificate library refused what was to be issued.
    #[error("a certificate could not be issued")]
    Issue(#[source] rcgen::Error),
    /// The TLS library refused a key or a setting.
    #[error("tls could not be set up")]
    Tls(#[source] rustls::Error),
    /// The cryptographic library failed to make, read or use a key.
    #[error("the cryptographic library failed to {0}")]
    Crypto(&'static str),
}

/// What is wrong with a file of the identity folder or a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileFault {
    /// Larger than any such file can be.
    #[error("is larger than {0} bytes")]
    TooLarge(u64),
    /// Not the expected PEM.
    #[error("is not a PEM file of the expected kind")]
    NotPem,
    /// Not text in the expected form.
    #[error("is not in the form this version writes")]
    NotText,
    /// A key that is not Ed25519 in PKCS#8.
    #[error("is not an Ed25519 key in PKCS#8")]
    NotAKey,
    /// The key does not belong to the certificate beside it.
    #[error("does not belong to the certificate beside it")]
    OtherKey,
    /// The certificate does not belong to the chain in the folder.
    #[error("does not fit the other certificates of the folder: {0}")]
    Chain(Refusal),
}

impl TrustError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn file(path: impl Into<PathBuf>, fault: FileFault) -> Self {
        Self::File { path: path.into(), fault }
    }

    /// Why a chain was refused, when this is such an error.
    pub const fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused(refusal) => Some(*refusal),
            _ => None,
        }
    }
}
