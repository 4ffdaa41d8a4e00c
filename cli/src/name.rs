//! What may be the name of an interface.

/// The kernel's rule: 1 to 15 bytes without slash and white space, neither `.` nor `..`. No colon
/// either, which the kernel reserves for aliases, and no `%`, which it would replace by a number.
pub(crate) fn parse(name: &str) -> Result<String, String> {
    let fault = if name.is_empty() {
        "is empty"
    } else if name.len() > 15 {
        "is longer than 15 bytes"
    } else if name == "." || name == ".." {
        "is a directory"
    } else if name.contains(|letter: char| {
        letter.is_whitespace() || letter.is_control() || "/:%".contains(letter)
    }) {
        "has a slash, colon, percent sign, space or control character"
    } else {
        return Ok(name.to_owned());
    };
    Err(format!("the name {fault}; choose one like wg0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_takes_are_taken() {
        for name in ["wg0", "a", "fifteen-bytes-0", "...", "ü"] {
            assert_eq!(parse(name).as_deref(), Ok(name));
        }
    }

    #[test]
    fn names_the_kernel_refuses_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "sixteen-bytes-00",
            "a/b",
            "../x",
            "a b",
            "a\tb",
            "a\n",
            "wg:0",
            "wg%d",
            "a\0",
        ] {
            assert!(parse(name).is_err(), "{name:?}");
        }
    }
}
