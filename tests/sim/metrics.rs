//! What the agent counts, scraped while it works; and that the dashboard and the alerts ask for what there is.

use crate::SimStage;
use agent::config::Config;
use driver::Backend;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};
use tests::{client::attach, stage::Stage};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinSet,
};

const MANY: usize = 100;

/// A stage whose agent serves metrics, and where.
async fn counted() -> (SimStage, PathBuf, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metrics.sock");
    let mut config = Config::default();
    config.metrics.listen = path.display().to_string();
    let stage = SimStage::with(config).await;
    let probe = scrape(&path).await;
    assert!(probe.ends_with("# EOF\n"), "{probe}");
    (stage, path, directory)
}

/// One answer, without its head.
async fn scrape(path: &Path) -> String {
    let mut stream = loop {
        // The agent's task has yet to come to it.
        match UnixStream::connect(path).await {
            Ok(stream) => break stream,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("openmetrics-text"), "{head}");
    text.to_owned()
}

/// The value of one line.
#[track_caller]
fn value(text: &str, series: &str) -> f64 {
    let line =
        text.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("no {series} in {text}"));
    line.trim().parse().unwrap()
}

/// The names that can be asked for.
fn names(text: &str) -> BTreeSet<String> {
    let series = text.lines().filter(|line| !line.starts_with('#'));
    series.map(|line| line.split(['{', ' ']).next().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_during_a_hundred_attaches() {
    let (mut stage, path, _directory) = counted().await;
    let mut locators = Vec::new();
    for number in 0..MANY {
        let backend = [Backend::File, Backend::Iscsi, Backend::Lvm][number % 3];
        locators.push(stage.volume(backend, &format!("v{number}"), 16 << 20).await);
    }
    let mut attaches = JoinSet::new();
    for (number, locator) in locators.into_iter().enumerate() {
        let mut client = stage.client();
        attaches.spawn(async move { client.attach(attach(&format!("a{number}"), &locator)).await.map(|_| ()) });
    }
    let mut scrapes = 0;
    while let Some(attached) = attaches.join_next().await {
        attached.unwrap().unwrap();
        if scrapes < 20 {
            let text = scrape(&path).await;
            assert!(value(&text, "mortar_operations_in_flight ") <= MANY as f64);
            scrapes += 1;
        }
    }
    let text = scrape(&path).await;
    assert_eq!(value(&text, "mortar_operations_in_flight "), 0.0);
    let mut sum = 0.0;
    for (backend, number) in [("file", 34.0), ("iscsi", 33.0), ("lvm", 33.0)] {
        let labels = format!("{{backend=\"{backend}\",state=\"ready\"}} ");
        assert_eq!(value(&text, &format!("mortar_attachments{labels}")), number, "{text}");
        let labels = format!("{{kind=\"attach\",backend=\"{backend}\",code=\"OK\"}} ");
        sum += value(&text, &format!("mortar_operations_total{labels}"));
        let labels = format!("{{kind=\"attach\",backend=\"{backend}\",phase=\"effects\"}} ");
        assert_eq!(value(&text, &format!("mortar_operation_phase_seconds_count{labels}")), number);
    }
    assert_eq!(sum, MANY as f64);
    assert!(value(&text, "mortar_processes_started_total{tool=\"lvm\"} ") >= 33.0);
    assert!(value(&text, "mortar_journal_bytes ") > 0.0);
    assert_eq!(value(&text, "mortar_read_only "), 0.0);
    // One that fails is counted by its code, and no name of a volume is told.
    let nowhere = stage.nowhere(Backend::Lvm);
    stage.client().attach(attach("none", &nowhere)).await.unwrap_err();
    let text = scrape(&path).await;
    for word in ["nowhere", "v17", "a17", "vg0", "iqn."] {
        assert!(!text.contains(word), "{word} in {text}");
    }
}

#[tokio::test]
async fn the_dashboard_and_the_alerts_ask_for_what_there_is() {
    let (mut stage, path, _directory) = counted().await;
    let locator = stage.volume(Backend::Lvm, "v", 16 << 20).await;
    stage.client().attach(attach("a", &locator)).await.unwrap();
    let there = names(&scrape(&path).await);
    for (what, text) in [
        ("the dashboard", include_str!("../../docs/monitoring/dashboard.json")),
        ("the alerts", include_str!("../../docs/monitoring/alerts.yml")),
    ] {
        let mut asked = 0;
        for (at, _) in text.match_indices("mortar_") {
            let name: String = text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            assert!(there.contains(&name), "{what}: there is no {name}: {there:?}");
            asked += 1;
        }
        assert!(asked > 5, "{what} ask for little");
    }
    let dashboard: serde_json::Value =
        serde_json::from_str(include_str!("../../docs/monitoring/dashboard.json")).unwrap();
    assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() >= 6));
}
