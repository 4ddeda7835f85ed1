//! A crate's licence as SPDX writes it: `MIT OR (Apache-2.0 WITH LLVM-exception AND ISC)`. AND binds closer than OR.

/// Whether it lets us use the crate, when these are allowed. With an exception, a licence is one of its own.
pub(crate) fn permits(expression: &str, allowed: &[String]) -> Result<bool, String> {
    // Some crates still write the old form of OR.
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut reader = Reader { words: spaced.split_whitespace().collect(), at: 0, allowed };
    let permitted = reader.either()?;
    match reader.next() {
        None => Ok(permitted),
        Some(word) => Err(format!("{word} is too much")),
    }
}

struct Reader<'a> {
    words: Vec<&'a str>,
    at: usize,
    allowed: &'a [String],
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.at).copied();
        self.at += 1;
        word
    }

    /// Whether that is the next word; then it is read.
    fn took(&mut self, word: &str) -> bool {
        let is_it = self.words.get(self.at) == Some(&word);
        self.at += usize::from(is_it);
        is_it
    }

    fn either(&mut self) -> Result<bool, String> {
        let mut permitted = self.all()?;
        while self.took("OR") {
            permitted |= self.all()?;
        }
        Ok(permitted)
    }

    fn all(&mut self) -> Result<bool, String> {
        let mut permitted = self.one()?;
        while self.took("AND") {
            permitted &= self.one()?;
        }
        Ok(permitted)
    }

    fn one(&mut self) -> Result<bool, String> {
        if self.took("(") {
            let permitted = self.either()?;
            return if self.took(")") { Ok(permitted) } else { Err("a bracket is not closed".into()) };
        }
        let mut name = self.name()?.to_owned();
        if self.took("WITH") {
            name = format!("{name} WITH {}", self.name()?);
        }
        Ok(self.allowed.contains(&name))
    }

    fn name(&mut self) -> Result<&'a str, String> {
        match self.next() {
            None => Err("it ends too early".into()),
            Some(word @ ("OR" | "AND" | "WITH" | "(" | ")")) => Err(format!("{word} is no name of one")),
            Some(name) => Ok(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(expression: &str) -> Result<bool, String> {
        permits(expression, &["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned))
    }

    #[test]
    fn one_way_is_enough_and_all_of_it_has_to_be_allowed() {
        for permitted in [
            "MIT",
            "GPL-3.0/MIT",
            "Apache-2.0 / ISC",
            "GPL-3.0 OR MIT AND ISC",
            "(GPL-3.0 OR MIT) AND ISC",
            "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
            "((MIT))",
        ] {
            assert_eq!(reads(permitted), Ok(true), "{permitted}");
        }
        for refused in
            ["GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0", "MIT WITH LLVM-exception", "GPL-3.0 AND (MIT OR ISC)", "mit"]
        {
            assert_eq!(reads(refused), Ok(false), "{refused}");
        }
    }

    #[test]
    fn what_is_none_is_said() {
        for none in ["", "MIT OR", "OR MIT", "(MIT", "MIT)", "MIT ISC", "MIT WITH", "AND", "()"] {
            assert!(reads(none).is_err(), "{none}");
        }
    }
}
