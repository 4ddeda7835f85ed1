//! One operation at a time for the same thing. Never waited for: a second caller learns at once who is there, and since
//! when. So there is no queue, no order and no deadlock.

use driver::{Error, Result};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::time::Instant;

/// What is held, and by whom.
#[derive(Debug, Clone, Default)]
pub(crate) struct Locks(Arc<Mutex<HashMap<String, Holder>>>);

#[derive(Debug)]
struct Holder {
    name: String,
    since: Instant,
}

/// Keys that are held until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    locks: Locks,
    keys: Vec<String>,
    holder: String,
}

impl Locks {
    fn table(&self) -> MutexGuard<'_, HashMap<String, Holder>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_held(&self, key: &str) -> bool {
        self.table().contains_key(key)
    }

    /// Takes all of `keys` or none. [`Error::Busy`] names who holds the first that is taken.
    pub(crate) fn take(&self, holder: &str, keys: impl IntoIterator<Item = String>) -> Result<Held> {
        let mut held = Held { locks: self.clone(), keys: Vec::new(), holder: holder.to_owned() };
        for key in keys {
            held.extend(key)?;
        }
        Ok(held)
    }
}

impl Held {
    /// Takes one more key. What is held already stays held if this fails.
    pub(crate) fn extend(&mut self, key: String) -> Result<()> {
        if self.keys.contains(&key) {
            return Ok(());
        }
        let mut table = self.locks.table();
        if let Some(other) = table.get(&key) {
            return Err(Error::Busy { what: key, holder: other.name.clone(), age: other.since.elapsed() });
        }
        table.insert(key.clone(), Holder { name: self.holder.clone(), since: Instant::now() });
        self.keys.push(key);
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut table = self.locks.table();
        for key in &self.keys {
            table.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn the_second_is_told_who_and_since_when() {
        let locks = Locks::default();
        let first = locks.take("attach a", ["a".to_owned(), "b".to_owned()]).unwrap();
        tokio::time::advance(Duration::from_secs(3)).await;
        let error = locks.take("attach b", ["c".to_owned(), "b".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), "b is held by attach a since 3000 ms; try again");
        assert!(locks.take("detach c", ["c".to_owned()]).is_ok(), "a refusal holds nothing");
        drop(first);
        assert!(locks.take("attach b", ["b".to_owned()]).is_ok());
    }
}
