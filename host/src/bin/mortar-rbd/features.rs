//! The names of an image's features, as `rbd info` shows them.

use host::rbd_job::FEATURES;

/// The names of the features whose bits are set.
pub(crate) fn named(bits: u64) -> Vec<String> {
    let set = (0..u64::BITS).filter(|bit| bits & (1 << bit) != 0);
    set.map(|bit| FEATURES.get(bit as usize).map_or_else(|| format!("unknown-{bit}"), |name| (*name).to_owned()))
        .collect()
}

/// Their bits. A name that is none here has none.
pub(crate) fn bits<'n>(names: impl IntoIterator<Item = &'n String>) -> u64 {
    let bit = |name: &String| FEATURES.iter().position(|known| known == name).map_or(0, |bit| 1 << bit);
    names.into_iter().map(bit).fold(0, |bits, bit| bits | bit)
}

#[cfg(test)]
mod tests {
    use super::{bits, named};

    #[test]
    fn features_have_the_names_that_rbd_gives_them() {
        // What an image of the default kind has: 61.
        assert_eq!(named(61), ["layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten"]);
        assert_eq!(named(1 << 11 | 1 << 7), ["data-pool", "dirty-cache"]);
    }

    #[test]
    fn names_have_their_bits() {
        assert_eq!(bits(&["layering".into(), "deep-flatten".into(), "unknown-40".into()]), 33);
    }

    #[test]
    fn a_feature_of_a_later_ceph_is_not_left_out() {
        assert_eq!(named(1 | 1 << 40), ["layering", "unknown-40"]);
    }
}
