//! Names of sites and nodes: what fits a DNS label and cannot do harm in a log, a path or a shell.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use thiserror::Error;

pub const MAX_NAME: usize = 63;

/// `[a-z0-9-]{1,63}`, not beginning or ending with `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a name has 1 to 63 of the characters a-z, 0-9 and -, and neither begins nor ends with -")]
pub struct BadName;

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A host name made to fit: other characters become `-`, and what is too long is cut with a
    /// hash of the whole, so that two long names stay two.
    pub fn fit(host: &str) -> Name {
        let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(host)[..4]);
        let fitted: String = host
            .chars()
            .map(|character| match character.to_ascii_lowercase() {
                kept @ ('a'..='z' | '0'..='9') => kept,
                _ => '-',
            })
            .collect();
        let fitted = fitted.trim_matches('-');
        if fitted.is_empty() {
            return Name(format!("node-{hash}"));
        }
        if fitted.len() <= MAX_NAME {
            return Name(fitted.to_owned());
        }
        let kept = fitted[..MAX_NAME - 1 - hash.len()].trim_end_matches('-');
        Name(format!("{kept}-{hash}"))
    }
}

impl FromStr for Name {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Name, BadName> {
        let fits = (1..=MAX_NAME).contains(&text.len())
            && text
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !text.starts_with('-')
            && !text.ends_with('-');
        if fits {
            Ok(Name(text.to_owned()))
        } else {
            Err(BadName)
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_dns_label_is_no_name() {
        for good in ["a", "0", "fra-1", "a--b", &"x".repeat(63)] {
            assert_eq!(
                good.parse::<Name>().map(|name| name.to_string()),
                Ok(good.to_owned())
            );
        }
        for bad in [
            "",
            "-a",
            "a-",
            "-",
            "A",
            "a.b",
            "a_b",
            "a b",
            "a\n",
            "\u{1b}[2J",
            "é",
            "../x",
            &"x".repeat(64),
        ] {
            assert_eq!(bad.parse::<Name>(), Err(BadName), "{bad:?}");
        }
    }

    #[test]
    fn a_host_name_is_made_to_fit() {
        assert_eq!(Name::fit("Web_1.example.").as_str(), "web-1-example");
        assert_eq!(Name::fit("fra-1").as_str(), "fra-1");
        for nothing in ["", "...", "日本"] {
            assert!(Name::fit(nothing).as_str().starts_with("node-"));
        }
        assert_ne!(Name::fit("."), Name::fit(".."));
    }

    #[test]
    fn two_long_names_stay_two() {
        let (one, two) = ("x".repeat(80), "x".repeat(81));
        assert_ne!(Name::fit(&one), Name::fit(&two));
        assert_eq!(Name::fit(&one).as_str().len(), MAX_NAME);
        // A cut that would leave a hyphen at the seam.
        let seam = format!("{}--{}", "y".repeat(52), "z".repeat(40));
        assert!(!Name::fit(&seam).as_str().contains("--"));
    }

    proptest! {
        #[test]
        fn what_is_made_to_fit_is_a_name_and_fits_as_it_is(host in ".{0,100}") {
            let name = Name::fit(&host);
            prop_assert_eq!(name.as_str().parse::<Name>(), Ok(name.clone()));
            prop_assert_eq!(Name::fit(name.as_str()), name);
        }
    }
}
