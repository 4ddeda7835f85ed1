//! Where a logical unit is, checked for what this driver can do.

use driver::{Error, Iqn, Locator, Lun, Portal, Result, Way};
use std::fmt;

/// One logical unit by one way. Several portals will be several places, brought up side by side.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) portal: Portal,
    pub(crate) iqn: Iqn,
    pub(crate) lun: Lun,
}

impl Place {
    /// [`Error::Unsupported`] if there are several portals: to use only one of them would be to promise a redundancy that
    /// is not there.
    pub(crate) fn of(locator: &Locator) -> Result<Self> {
        let Locator::Iscsi(unit) = locator else {
            return Err(Error::invalid("locator", format!("{locator} is not an iSCSI locator")));
        };
        match unit.ways.as_slice() {
            [way] => Ok(Self { portal: way.portal, iqn: way.iqn.clone(), lun: way.lun }),
            [] => Err(Error::invalid("locator", format!("{locator} has no portal"))),
            _ => Err(Error::Unsupported {
                what: "several portals need multipath, which this build has not yet; give one portal".into(),
            }),
        }
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
    fn one_portal_or_none_at_all() {
        let one: Locator = "iscsi://10.0.0.5/iqn.2026-11.org.example:t1/7".parse().unwrap();
        let place = Place::of(&one).unwrap();
        assert_eq!(place.to_string(), "LUN 7 of target iqn.2026-11.org.example:t1 at 10.0.0.5:3260");
        let two: Locator = "iscsi://10.0.0.5,10.0.0.6/iqn.2026-11.org.example:t1/7".parse().unwrap();
        assert!(matches!(Place::of(&two), Err(Error::Unsupported { .. })));
        let other: Locator = "lvm:vg/lv".parse().unwrap();
        assert!(matches!(Place::of(&other), Err(Error::Invalid { .. })));
    }
}
