//! What the agent counts, scraped while it works; and that the dashboard and the alerts ask for what there is.

use crate::SimStage;
use agent::config::Config;
use driver::Backend;
use std::path::{Path, PathBuf};
use tests::{
    client::attach,
    openmetrics::{Scrape, ask},
    stage::Stage,
};
use tokio::{net::UnixStream, task::JoinSet};

const MANY: usize = 100;

/// A stage whose agent serves metrics, and where.
async fn counted() -> (SimStage, PathBuf, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metrics.sock");
    let mut config = Config::default();
    config.metrics.listen = path.display().to_string();
    let stage = SimStage::with(config).await;
    Scrape::of(&scrape(&path).await);
    (stage, path, directory)
}

async fn scrape(path: &Path) -> String {
    loop {
        // The agent's task has yet to come to it.
        match UnixStream::connect(path).await {
            Ok(stream) => break ask(stream).await,
            Err(_) => tokio::task::yield_now().await,
        }
    }
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
            let now = Scrape::of(&scrape(&path).await);
            assert!(now.value("mortar_operations_in_flight") <= MANY as f64);
            scrapes += 1;
        }
    }
    let now = Scrape::of(&scrape(&path).await);
    assert_eq!(now.value("mortar_operations_in_flight"), 0.0);
    let mut sum = 0.0;
    for (backend, number) in [("file", 34.0), ("iscsi", 33.0), ("lvm", 33.0)] {
        let labels = format!("{{backend=\"{backend}\",state=\"ready\"}}");
        assert_eq!(now.value(&format!("mortar_attachments{labels}")), number);
        let labels = format!("{{kind=\"attach\",backend=\"{backend}\",code=\"OK\"}}");
        sum += now.value(&format!("mortar_operations_total{labels}"));
        let labels = format!("{{kind=\"attach\",backend=\"{backend}\",phase=\"effects\"}}");
        assert_eq!(now.value(&format!("mortar_operation_phase_seconds_count{labels}")), number);
    }
    assert_eq!(sum, MANY as f64);
    assert!(now.value("mortar_processes_started_total{tool=\"lvm\"}") >= 33.0);
    assert!(now.value("mortar_journal_bytes") > 0.0);
    assert_eq!(now.value("mortar_read_only"), 0.0);
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
    let scraped = Scrape::of(&scrape(&path).await);
    let there = scraped.names();
    for (what, text) in [
        ("the dashboard", include_str!("../../docs/monitoring/dashboard.json")),
        ("the alerts", include_str!("../../docs/monitoring/alerts.yml")),
    ] {
        let mut asked = 0;
        for (at, _) in text.match_indices("mortar_") {
            let name: String = text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            assert!(there.contains(&*name), "{what}: there is no {name}: {there:?}");
            asked += 1;
        }
        assert!(asked > 5, "{what} ask for little");
    }
    let dashboard: serde_json::Value =
        serde_json::from_str(include_str!("../../docs/monitoring/dashboard.json")).unwrap();
    assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() >= 6));
}
