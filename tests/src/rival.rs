//! The other implementations that Causeway must work with.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::lab::skip_or_fail;
use crate::wireguard::{Implementation, Program};

/// Another WireGuard. Two builds of wireguard-go differ as much as two programs do: the older is from
/// before its offloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rival {
    WireguardGo,
    /// The one of a stable distribution.
    OldWireguardGo,
    BoringtunCli,
    Gotatun,
}

impl Rival {
    pub const ALL: [Rival; 4] = [
        Rival::WireguardGo,
        Rival::OldWireguardGo,
        Rival::BoringtunCli,
        Rival::Gotatun,
    ];

    /// Whether a peer it knows can be changed: one of them ends when that is tried.
    pub fn changes_peers(self) -> bool {
        match self {
            Rival::WireguardGo | Rival::OldWireguardGo | Rival::Gotatun => true,
            Rival::BoringtunCli => false,
        }
    }

    /// Whether it goes on when the address it sends from is taken away: one connects its sockets, the
    /// other remembers the address until the next handshake.
    pub fn changes_address(self) -> bool {
        match self {
            Rival::WireguardGo | Rival::Gotatun => true,
            Rival::OldWireguardGo | Rival::BoringtunCli => false,
        }
    }

    /// The program, or why it is not here.
    pub fn program(self) -> Result<Program> {
        match self {
            Rival::WireguardGo => Program::find(Implementation::WireguardGo),
            Rival::BoringtunCli => Program::find(Implementation::BoringtunCli),
            Rival::Gotatun => Program::find(Implementation::Gotatun),
            Rival::OldWireguardGo => {
                let path = PathBuf::from("/usr/bin/wireguard-go");
                ensure!(
                    path.is_file(),
                    "the distribution's wireguard-go is not installed"
                );
                Ok(Program {
                    implementation: Implementation::WireguardGo,
                    path,
                    arguments: Vec::new(),
                })
            }
        }
    }

    /// The program, or `None` when the test that calls must stop without it.
    pub fn find(self) -> Option<Program> {
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test");
        match self.program() {
            Ok(program) => Some(program),
            Err(why) => {
                skip_or_fail(test, &format!("{why:#}"));
                None
            }
        }
    }
}
