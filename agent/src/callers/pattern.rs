//! Names with `*` in them, which stands for any characters, also for none.

use std::fmt;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern(String);

impl Pattern {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(crate) fn fits(&self, name: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else { return self.0 == name };
        let Some(mut name) = name.strip_prefix(first) else { return false };
        let mut parts: Vec<&str> = rest.split('*').collect();
        let last = parts.pop().unwrap_or_default();
        for part in parts {
            // The first place is as good as any: what comes behind it is the longest.
            let Some((_, behind)) = name.split_once(part) else { return false };
            name = behind;
        }
        name.ends_with(last)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars() {
        for (pattern, fits, fits_not) in [
            ("vg0", vec!["vg0"], vec!["vg", "vg00", "VG0", ""]),
            ("vg*", vec!["vg", "vg0", "vg*"], vec!["avg", "v"]),
            (
                "*.example.org",
                vec!["a.example.org", "a.b.example.org", ".example.org"],
                vec!["example.org", "a.example.orgx"],
            ),
            ("a*b*c", vec!["abc", "aXbYc", "abbcc"], vec!["ac", "acb", "abcd"]),
            ("ab*ba", vec!["abba", "ab-ba"], vec!["aba"]),
            ("", vec![""], vec!["x"]),
        ] {
            for name in fits {
                assert!(Pattern::new(pattern).fits(name), "{pattern} {name}");
            }
            for name in fits_not {
                assert!(!Pattern::new(pattern).fits(name), "{pattern} {name}");
            }
        }
    }

    /// As one would write it down first, and as slow.
    fn fits(pattern: &[char], name: &[char]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some(('*', rest)) => (0..=name.len()).any(|cut| fits(rest, &name[cut..])),
            Some((first, rest)) => name.split_first().is_some_and(|(c, behind)| c == first && fits(rest, behind)),
        }
    }

    proptest! {
        #[test]
        fn as_the_definition_has_it(pattern in "[ab*]{0,8}", name in "[ab]{0,10}") {
            let chars = |text: &str| text.chars().collect::<Vec<char>>();
            prop_assert_eq!(Pattern::new(&pattern).fits(&name), fits(&chars(&pattern), &chars(&name)));
        }
    }
}
