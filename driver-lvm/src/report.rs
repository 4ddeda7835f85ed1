//! `lvm fullreport` as types: one process tells all of a VG, however many LVs it holds.
//!
//! Everything arrives as text in JSON; what is missing or is no number is an error that names the field.

use driver::{Error, Result};
use serde::Deserialize;
use std::path::PathBuf;

/// The arguments of the report. Of a VG's segments only as much is asked as the report insists on: nothing.
pub(crate) const ARGUMENTS: &[&str] = &[
    "fullreport",
    "--reportformat",
    "json",
    "--units",
    "b",
    "--nosuffix",
    "--all",
    "--foreign",
    "--shared",
    "--configreport",
    "vg",
    "-o",
    "vg_name,vg_uuid,vg_systemid,vg_exported,vg_missing_pv_count,vg_lock_type,vg_extent_size,vg_free",
    "--configreport",
    "pv",
    "-o",
    "pv_name",
    "--configreport",
    "lv",
    "-o",
    "lv_name,lv_uuid,lv_size,lv_role,lv_layout,lv_tags,origin,pool_lv,lv_attr,lv_health_status",
    "--configreport",
    "pvseg",
    "-o",
    "pv_name",
    "-S",
    "pv_name=none",
    "--configreport",
    "seg",
    "-o",
    "segtype",
    "-S",
    "segtype=none",
];

/// A volume group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vg {
    pub(crate) name: String,
    /// Without dashes.
    pub(crate) uuid: String,
    /// The system ID of the one host that may use it (lvmsystemid(7)), which may be this one.
    pub(crate) owner: Option<String>,
    pub(crate) exported: bool,
    pub(crate) missing_pvs: u64,
    /// Empty, `none`, `sanlock` or `dlm` (lvmlockd(8)).
    pub(crate) lock_type: String,
    /// What LVs are made of, in bytes.
    pub(crate) extent_size: u64,
    /// What no LV has, in bytes.
    pub(crate) free_bytes: u64,
    /// The devices it is on, but for the missing ones.
    pub(crate) pvs: Vec<PathBuf>,
    pub(crate) lvs: Vec<Lv>,
}

/// A logical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lv {
    pub(crate) name: String,
    /// Without dashes.
    pub(crate) uuid: String,
    pub(crate) size_bytes: u64,
    /// A part of another LV, of no use by itself; lvm shows its name in brackets.
    pub(crate) hidden: bool,
    /// `public`, `private`, `snapshot`, `thickorigin`, …
    pub(crate) roles: Vec<String>,
    /// `linear`, `thin`, `pool`, `raid1`, …
    pub(crate) layouts: Vec<String>,
    pub(crate) tags: Vec<String>,
    /// What it is a snapshot of.
    pub(crate) origin: Option<String>,
    /// Of a thin LV, where its data is.
    pub(crate) pool: Option<String>,
    /// What the VG says, whatever the mode in which it is active.
    pub(crate) writable: bool,
    /// One of its PVs is missing.
    pub(crate) partial: bool,
}

impl Vg {
    pub(crate) fn lv(&self, name: &str) -> Option<&Lv> {
        self.lvs.iter().find(|lv| lv.name == name)
    }

    pub(crate) fn by_uuid(&self, uuid: &str) -> Option<&Lv> {
        self.lvs.iter().find(|lv| lv.uuid == uuid)
    }
}

impl Lv {
    pub(crate) fn is(&self, role: &str) -> bool {
        self.roles.iter().any(|known| known == role)
    }

    pub(crate) fn is_laid_out_as(&self, layout: &str) -> bool {
        self.layouts.iter().any(|known| known == layout)
    }
}

/// The VGs of a report.
pub(crate) fn parse(text: &str) -> Result<Vec<Vg>> {
    let document: Document = serde_json::from_str(text).map_err(Error::host("read the report of lvm"))?;
    document.report.into_iter().filter_map(Group::into_vg).collect()
}

/// How full the one pool of a report is, in percent: data and metadata.
pub(crate) fn filled(text: &str) -> Result<Option<(f64, f64)>> {
    #[derive(Deserialize)]
    struct Rows {
        report: Vec<Row>,
    }
    #[derive(Deserialize)]
    struct Row {
        lv: Vec<Percent>,
    }
    #[derive(Deserialize)]
    struct Percent {
        data_percent: String,
        metadata_percent: String,
    }
    let rows: Rows = serde_json::from_str(text).map_err(Error::host("read the report of lvm"))?;
    let pool = rows.report.iter().flat_map(|row| &row.lv).next();
    Ok(pool.and_then(|pool| Some((pool.data_percent.parse().ok()?, pool.metadata_percent.parse().ok()?))))
}

#[derive(Deserialize)]
struct Document {
    report: Vec<Group>,
}

/// One VG, or (without `vg`) the PVs that are in none.
#[derive(Deserialize)]
struct Group {
    #[serde(default)]
    vg: Vec<VgRow>,
    #[serde(default)]
    pv: Vec<PvRow>,
    #[serde(default)]
    lv: Vec<LvRow>,
}

#[derive(Deserialize)]
struct VgRow {
    vg_name: String,
    vg_uuid: String,
    vg_systemid: String,
    vg_exported: String,
    vg_missing_pv_count: String,
    vg_lock_type: String,
    vg_extent_size: String,
    vg_free: String,
}

#[derive(Deserialize)]
struct PvRow {
    pv_name: PathBuf,
}

#[derive(Deserialize)]
struct LvRow {
    lv_name: String,
    lv_uuid: String,
    lv_size: String,
    lv_role: String,
    lv_layout: String,
    lv_tags: String,
    origin: String,
    pool_lv: String,
    lv_attr: String,
    lv_health_status: String,
}

impl Group {
    fn into_vg(self) -> Option<Result<Vg>> {
        let row = self.vg.into_iter().next().filter(|row| !row.vg_uuid.is_empty())?;
        Some(row.into_vg(self.pv, self.lv))
    }
}

impl VgRow {
    fn into_vg(self, pvs: Vec<PvRow>, lvs: Vec<LvRow>) -> Result<Vg> {
        Ok(Vg {
            name: self.vg_name,
            uuid: undashed(&self.vg_uuid),
            owner: Some(self.vg_systemid).filter(|id| !id.is_empty()),
            exported: !self.vg_exported.is_empty(),
            missing_pvs: number("vg_missing_pv_count", &self.vg_missing_pv_count)?,
            lock_type: self.vg_lock_type,
            extent_size: number("vg_extent_size", &self.vg_extent_size)?.max(1),
            free_bytes: number("vg_free", &self.vg_free)?,
            // A missing one is called `[unknown]`.
            pvs: pvs.into_iter().map(|row| row.pv_name).filter(|name| name.is_absolute()).collect(),
            lvs: lvs.into_iter().map(LvRow::into_lv).collect::<Result<_>>()?,
        })
    }
}

impl LvRow {
    fn into_lv(self) -> Result<Lv> {
        let inner = |name: &str| Some(name.strip_prefix('[')?.strip_suffix(']')?.to_owned());
        let hidden = inner(&self.lv_name);
        let [origin, pool] = [self.origin, self.pool_lv].map(|name| inner(&name).unwrap_or(name));
        Ok(Lv {
            size_bytes: number("lv_size", &self.lv_size)?,
            uuid: undashed(&self.lv_uuid),
            hidden: hidden.is_some(),
            name: hidden.unwrap_or(self.lv_name),
            roles: words(&self.lv_role),
            layouts: words(&self.lv_layout),
            tags: words(&self.lv_tags),
            origin: Some(origin).filter(|name| !name.is_empty()),
            pool: Some(pool).filter(|name| !name.is_empty()),
            // lvs(8), the second bit: `w`, `r`, and `R` for a writable one that is active read-only. `lv_permissions`
            // says `unknown` of an LV that is not active.
            writable: self.lv_attr.as_bytes().get(1) != Some(&b'r'),
            partial: self.lv_health_status == "partial",
        })
    }
}

/// A UUID as the kernel has it: `XyneEb-WFhY-…` without its dashes.
fn undashed(uuid: &str) -> String {
    uuid.replace('-', "")
}

fn words(list: &str) -> Vec<String> {
    list.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn number(field: &'static str, text: &str) -> Result<u64> {
    text.parse().map_err(Error::host(format!("read the report of lvm: {field} is {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Captured from lvm2 2.03.16 on Linux 6.1: three VGs, LVs of every sort, one open, one of them read-only. (The size of
    /// extents, what is free and the pools were put in later, by hand.)
    const ALL: &str = include_str!("../testdata/all.json");
    /// The same VG seen with one of its two PVs only.
    const PARTIAL: &str = include_str!("../testdata/partial.json");
    const EXPORTED: &str = include_str!("../testdata/exported.json");

    fn vg<'a>(vgs: &'a [Vg], name: &str) -> &'a Vg {
        vgs.iter().find(|vg| vg.name == name).unwrap()
    }

    #[test]
    fn reads_what_lvm_writes() {
        let vgs = parse(ALL).unwrap();
        assert_eq!(vgs.len(), 3);
        assert_eq!(vg(&vgs, "vgc").owner.as_deref(), Some("other"));
        let vga = vg(&vgs, "vga");
        assert_eq!((vga.uuid.len(), vga.missing_pvs, vga.exported), (32, 0, false));
        assert_eq!(vga.pvs, [PathBuf::from("/dev/loop0"), PathBuf::from("/dev/loop1")]);

        let root = vga.lv("root").unwrap();
        assert_eq!((root.size_bytes, root.writable, root.uuid.len()), (20 << 20, true, 32));
        assert_eq!(vga.lv("a-b").unwrap().tags, ["mortar.id=11", "t2"]);
        assert!(vga.lv("tp").unwrap().is_laid_out_as("pool"));
        assert!(vga.lv("tp_tmeta").unwrap().hidden);
        assert!(!vga.lv("ro").unwrap().writable);
        assert_eq!(vga.lv("snap").unwrap().origin.as_deref(), Some("orig"));
        assert!(vga.lv("thin1s").unwrap().is("thinsnapshot"));
        assert_eq!(vga.lv("thin1s").unwrap().pool.as_deref(), Some("tp"));
        assert_eq!((vga.extent_size, vga.free_bytes), (4 << 20, 80 << 20));
    }

    #[test]
    fn a_missing_pv_is_counted_not_named() {
        let vgs = parse(PARTIAL).unwrap();
        let vga = vg(&vgs, "vga");
        assert_eq!((vga.missing_pvs, vga.pvs.len()), (1, 1));
        assert!(vga.lv("r1").unwrap().partial);
        assert!(!vga.lv("root").unwrap().partial);
    }

    #[test]
    fn an_exported_vg() {
        assert!(vg(&parse(EXPORTED).unwrap(), "vgb").exported);
    }

    #[test]
    fn nonsense_is_an_error_that_names_the_field() {
        for (text, named) in [
            ("", "EOF"),
            ("{}", "report"),
            (r#"{"report":[{"vg":[{"vg_name":"a"}]}]}"#, "vg_uuid"),
            (&ALL.replace("\"20971520\"", "\"20M\""), "lv_size"),
            (&ALL.replace("\"lv_uuid\"", "\"lv_id\""), "lv_uuid"),
        ] {
            let error = parse(text).unwrap_err().chain();
            assert!(error.contains(named), "{error}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(cut in 0..ALL.len(), byte in any::<u8>(), free in "\\PC{0,80}") {
            let _ = parse(&free);
            let _ = parse(ALL.get(..cut).unwrap_or_default());
            let mut bytes = ALL.as_bytes().to_vec();
            bytes[cut] = byte;
            let _ = parse(&String::from_utf8_lossy(&bytes));
        }
    }
}
