//! Commands run to their end, with a limit, and what they said.

use std::io::{Read, Write as _};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::wireguard::Implementation;

/// A command that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// What a command that has ended printed.
#[derive(Clone, Debug)]
pub struct Said {
    pub what: String,
    /// `None` if a signal ended it.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
    pub took: Duration,
}

/// The release binary, with an environment that tells it nothing.
pub fn causeway() -> Command {
    let program = Implementation::Causeway
        .locate()
        .expect("the release binary is built, or CAUSEWAY_BIN names it");
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CAUSEWAY_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs to its end; `input` goes to standard input.
pub fn run(mut command: Command, input: Option<&str>) -> Result<Said> {
    let what = describe(&command);
    let begin = Instant::now();
    let mut child = command
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{what}`"))?;
    let out = collect(child.stdout.take());
    let err = collect(child.stderr.take());
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // A command that failed early does not read it; its own words say more.
        let _ = stdin.write_all(input.as_bytes());
    }
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begin.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            bail!("`{what}` did not end within {LIMIT:?}: {}", joined(err));
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Ok(Said {
        what,
        code: status.code(),
        out: joined(out),
        err: joined(err),
        took: begin.elapsed(),
    })
}

/// Runs a command with `--json` and reads what it printed.
pub fn json(command: Command) -> Result<serde_json::Value> {
    let said = run(command, None)?.expect_success()?;
    serde_json::from_str(&said.out)
        .with_context(|| format!("`{}` printed no JSON: {}", said.what, said.out))
}

impl Said {
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    pub fn expect_success(self) -> Result<Said> {
        if self.success() {
            return Ok(self);
        }
        bail!(
            "`{}` ended with {:?}: {}{}",
            self.what,
            self.code,
            self.err,
            self.out
        )
    }

    /// That it failed in words, with these among them, and did not panic.
    #[track_caller]
    pub fn assert_refused(&self, words: &[&str]) {
        let text = self.err.to_lowercase();
        assert!(
            self.code == Some(1) || self.code == Some(2),
            "`{}` ended with {:?}: {}",
            self.what,
            self.code,
            self.err
        );
        assert!(!text.contains("panicked"), "{text}");
        for word in words {
            assert!(
                text.contains(&word.to_lowercase()),
                "`{}` does not say {word:?}: {}",
                self.what,
                self.err
            );
        }
    }
}

pub fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|word| word.to_string_lossy()));
    words.join(" ")
}

fn collect(stream: Option<impl Read + Send + 'static>) -> Option<JoinHandle<Vec<u8>>> {
    let mut stream = stream?;
    Some(std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        bytes
    }))
}

fn joined(reader: Option<JoinHandle<Vec<u8>>>) -> String {
    let bytes = reader.and_then(|reader| reader.join().ok());
    String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
}
