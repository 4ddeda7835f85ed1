//! Where a logical unit is, checked for what this driver can do.

use driver::{Error, Iqn, Locator, Lun, Portal, Result, Way};
use std::fmt;

/// One logical unit by one way. A unit with several ways is several places.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) portal: Portal,
    pub(crate) iqn: Iqn,
    pub(crate) lun: Lun,
}

impl Place {
    /// All the ways to a unit, at least one, in the caller's order.
    pub(crate) fn all(locator: &Locator) -> Result<Vec<Self>> {
        let Locator::Iscsi(unit) = locator else {
            return Err(Error::invalid("locator", format!("{locator} is not an iSCSI locator")));
        };
        if unit.ways.is_empty() {
            return Err(Error::invalid("locator", format!("{locator} has no portal")));
        }
        let place = |way: &Way| Self { portal: way.portal, iqn: way.iqn.clone(), lun: way.lun };
        Ok(unit.ways.iter().map(place).collect())
    }

    /// The same in a locator's terms.
    pub(crate) fn way(&self) -> Way {
        Way { portal: self.portal, iqn: self.iqn.clone(), lun: self.lun }
    }

    /// The target for an error: `target iqn.2026-11.org.example:t1 at 10.0.0.5:3260`.
    pub(crate) fn target(&self) -> String {
        format!("target {} at {}", self.iqn, self.portal)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LUN {} of {}", self.lun, self.target())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_for_each_way() {
        let places = |locator: &str| Place::all(&locator.parse().unwrap());
        let one = places("iscsi://10.0.0.5/iqn.2026-11.org.example:t1/7").unwrap();
        assert_eq!(one[0].to_string(), "LUN 7 of target iqn.2026-11.org.example:t1 at 10.0.0.5:3260");
        let ways = "10.0.0.5,[FE80::A]:860/iqn.2026-11.org.example:t1/7,10.0.1.5/iqn.2026-11.org.example:t2/8";
        let several: Vec<_> = places(&format!("iscsi://{ways}")).unwrap().iter().map(Place::to_string).collect();
        assert_eq!(
            several,
            [
                "LUN 7 of target iqn.2026-11.org.example:t1 at 10.0.0.5:3260",
                "LUN 7 of target iqn.2026-11.org.example:t1 at [fe80::a]:860",
                "LUN 8 of target iqn.2026-11.org.example:t2 at 10.0.1.5:3260",
            ]
        );
        assert!(matches!(places("lvm:vg/lv"), Err(Error::Invalid { .. })));
    }
}
