//! Files that a run leaves.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Writes `text` to the file that was asked for, else to `default` where builds put what they make:
/// a run takes minutes, and none of it should be lost for want of a flag.
pub(crate) fn write(asked: Option<&Path>, default: &str, text: &str) -> Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    let path = match asked {
        Some(path) => path.to_path_buf(),
        None => {
            fs::create_dir_all(&directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
            directory.join(default)
        }
    };
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}
