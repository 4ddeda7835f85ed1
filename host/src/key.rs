//! A key that the kernel is lent for one call.

use secrecy::{ExposeSecret, SecretBox};

/// A key of the kernel's key service (`keyrings(7)`). It is put where only the calling thread finds it.
pub struct KernelKey {
    /// `ceph`
    pub kind: &'static str,
    /// What it is looked for by.
    pub description: String,
    /// What it holds.
    pub payload: SecretBox<Vec<u8>>,
}

impl Clone for KernelKey {
    fn clone(&self) -> Self {
        let payload = SecretBox::new(Box::new(self.payload.expose_secret().clone()));
        Self { kind: self.kind, description: self.description.clone(), payload }
    }
}

impl std::fmt::Debug for KernelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelKey")
            .field("kind", &self.kind)
            .field("description", &self.description)
            .finish_non_exhaustive()
    }
}
