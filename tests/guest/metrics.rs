//! What the service counts, scraped as Prometheus does: over TCP, every now and then, and while a lot is going on.

use crate::{
    cli::{Reconfigured, figure},
    machine::{GuestStage, sh},
};
use std::time::{Duration, Instant};
use tests::{
    client::attach,
    openmetrics::{Scrape, ask},
    stage::Stage,
};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

const ADDRESS: &str = "127.0.0.1:9723";
const MANY: usize = 100;
/// The guest has one processor for all of it, and may have to share that one.
const PATIENCE: Duration = Duration::from_secs(20);

async fn scrape() -> Scrape {
    let asked = async { ask(TcpStream::connect(ADDRESS).await.unwrap()).await };
    Scrape::of(&timeout(PATIENCE, asked).await.expect("a scrape's answer in time"))
}

/// However many are attaching, a scrape is answered; nobody is lost, and in the end all of them are counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrape_during_a_hundred_attaches() {
    let stage = GuestStage::bare();
    let directory = stage.directory();
    sh(&format!("truncate -s 1M {directory}/v{{1..{MANY}}}.raw"));
    let before = stage.snapshot().await;
    let _served = Reconfigured::new("listen = \"\"", &format!("listen = \"{ADDRESS}\""));
    const ENDED: &str = "mortar_operations_total{kind=\"attach\",backend=\"file\",code=\"OK\"}";
    const BEGUN: &str = "mortar_operations_in_flight";
    assert_eq!(scrape().await.get(ENDED), None, "it was restarted");

    let mut attaches = JoinSet::new();
    let started = Instant::now();
    for number in 1..=MANY {
        let (mut client, request) =
            (stage.client(), attach(&format!("m{number}"), &format!("file:{directory}/v{number}.raw")));
        attaches.spawn(async move { client.attach(request).await.map(drop) });
    }
    let (mut scrapes, mut most, mut slowest) = (0, 0.0_f64, Duration::ZERO);
    let mut ended = 0.0;
    while !attaches.is_empty() {
        let asked = Instant::now();
        let now = scrape().await;
        (scrapes, slowest) = (scrapes + 1, slowest.max(asked.elapsed()));
        let (running, done) = (now.value(BEGUN), now.get(ENDED).unwrap_or(0.0));
        assert!(running <= MANY as f64 && done >= ended, "{running} run, {done} after {ended} ended");
        (most, ended) = (most.max(running), done);
        while let Some(attached) = attaches.try_join_next() {
            attached.unwrap().unwrap();
        }
    }
    figure("100 attaches, scraped meanwhile", format!("{:.1?}", started.elapsed()));
    figure("scrapes, the slowest, most in flight", format!("{scrapes}, {slowest:.1?}, {most}"));
    assert!(most > 0.0, "{scrapes} scrapes saw nothing under way");

    let now = scrape().await;
    assert_eq!((now.value(BEGUN), now.value(ENDED)), (0.0, MANY as f64));
    assert_eq!(now.value("mortar_attachments{backend=\"file\",state=\"ready\"}"), MANY as f64);
    for phase in ["intent", "effects", "outcome"] {
        let counted =
            format!("mortar_operation_phase_seconds_count{{kind=\"attach\",backend=\"file\",phase=\"{phase}\"}}");
        assert_eq!(now.value(&counted), MANY as f64, "{phase}");
    }
    assert_eq!(now.get("mortar_operations_wedged"), Some(0.0));

    let mut detaches = JoinSet::new();
    for number in 1..=MANY {
        let mut client = stage.client();
        detaches.spawn(async move { client.detach(&format!("m{number}")).await.map(drop) });
    }
    while let Some(gone) = detaches.join_next().await {
        gone.unwrap().unwrap();
    }
    let now = scrape().await;
    assert_eq!(now.value("mortar_operations_total{kind=\"detach\",backend=\"file\",code=\"OK\"}"), MANY as f64);
    assert_eq!(now.get("mortar_attachments{backend=\"file\",state=\"ready\"}").unwrap_or(0.0), 0.0);
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}
