//! Versions of tools, compared by their numbers: each tool prints its own in a form of its own.

/// Whether a version (`2.03.16(2)`, `2.1.8`, `2.0-874`) is that one or later, by its numbers. What begins with no number is
/// none.
pub fn is_at_least(version: &str, least: &[u32]) -> bool {
    let numbers = version.trim().split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let numbers: Vec<u32> = numbers.map_while(Result::ok).collect();
    !numbers.is_empty() && numbers.as_slice() >= least
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn as_tools_print_them() {
        for (version, least, expected) in [
            ("2.03.16(2) (2022-05-18)", &[2, 3, 12][..], true),
            ("2.03.12(2)", &[2, 3, 12], true),
            ("2.03.11(2)", &[2, 3, 12], false),
            ("2.1.8", &[2, 1], true),
            ("2.1", &[2, 1], true),
            ("2.0-874", &[2, 1], false),
            ("6.2.1.4-1", &[2, 1], true),
            ("0.9.4 (12/19, 2022)", &[0, 8], true),
            ("0.7.9", &[0, 8], false),
            ("", &[0], false),
            ("x", &[0], false),
        ] {
            assert_eq!(is_at_least(version, least), expected, "{version}");
        }
    }

    proptest! {
        #[test]
        fn no_version_panics_and_each_is_at_least_itself(text in "\\PC{0,20}", numbers in proptest::collection::vec(any::<u32>(), 1..5)) {
            let _ = is_at_least(&text, &numbers);
            let version: Vec<String> = numbers.iter().map(u32::to_string).collect();
            prop_assert!(is_at_least(&version.join("."), &numbers));
            prop_assert!(!is_at_least(&version.join("."), &[&numbers[..], &[0]].concat()));
        }
    }
}
