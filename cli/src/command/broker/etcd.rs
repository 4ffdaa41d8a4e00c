//! What a broker shows to an etcd that asks who it is: files, so that no secret is an argument.

use std::path::PathBuf;

use broker::store::etcd::AccessFiles;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Etcd {
    /// The certificate of the CA that signs etcd's, for a store etcds://...
    #[arg(long, value_name = "FILE", env = "CAUSEWAY_ETCD_CA")]
    etcd_ca: Option<PathBuf>,
    /// This broker's client certificate, if etcd asks for one.
    #[arg(long, value_name = "FILE", env = "CAUSEWAY_ETCD_CERT")]
    etcd_cert: Option<PathBuf>,
    /// The key of that certificate.
    #[arg(long, value_name = "FILE", env = "CAUSEWAY_ETCD_KEY")]
    etcd_key: Option<PathBuf>,
    /// The user of etcd that this broker is.
    #[arg(long, value_name = "NAME", env = "CAUSEWAY_ETCD_USER")]
    etcd_user: Option<String>,
    /// Holds that user's password and nothing else.
    #[arg(long, value_name = "FILE", env = "CAUSEWAY_ETCD_PASSWORD_FILE")]
    etcd_password_file: Option<PathBuf>,
}

impl From<Etcd> for AccessFiles {
    fn from(given: Etcd) -> AccessFiles {
        AccessFiles {
            ca: given.etcd_ca,
            certificate: given.etcd_cert,
            key: given.etcd_key,
            user: given.etcd_user,
            password: given.etcd_password_file,
        }
    }
}
