//! What the service counts, scraped as Prometheus does: over TCP, every now and then, and while a lot is going on.

use crate::{
    cli::{Reconfigured, figure, until},
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
const AT_A_TIME: usize = 8;
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
    // They are served a moment after the socket.
    until("the metrics", PATIENCE, || std::net::TcpStream::connect(ADDRESS).ok());
    assert_eq!(scrape().await.get(ENDED), None, "it was restarted");

    let mut attaches = JoinSet::new();
    let started = Instant::now();
    for number in 1..=MANY {
        let (mut client, request) =
            (stage.client(), attach(&format!("m{number}"), &format!("file:{directory}/v{number}.raw")));
        attaches.spawn(async move { client.attach(request).await.map(drop) });
    }
    // Several at a time: each waits for the journal, as the attaches do, and tells how it was when it began.
    let (mut scrapes, mut answers) = (JoinSet::new(), Vec::new());
    while !attaches.is_empty() {
        if scrapes.len() < AT_A_TIME {
            scrapes.spawn(async {
                let asked = Instant::now();
                (scrape().await, asked.elapsed())
            });
        }
        if let Ok(Some(attached)) = timeout(Duration::from_millis(50), attaches.join_next()).await {
            attached.unwrap().unwrap();
        }
        answers.extend(std::iter::from_fn(|| scrapes.try_join_next()).map(Result::unwrap));
    }
    let took = started.elapsed();
    answers.extend(scrapes.join_all().await);
    let (count, mut most, mut slowest) = (answers.len(), 0.0_f64, Duration::ZERO);
    for (then, answered_in) in answers {
        let (running, done) = (then.value(BEGUN), then.get(ENDED).unwrap_or(0.0));
        assert!(running <= MANY as f64 && done <= MANY as f64, "{running} run, {done} ended");
        (most, slowest) = (most.max(running), slowest.max(answered_in));
    }
    figure("100 attaches, scraped meanwhile", format!("{took:.1?}"));
    figure("scrapes, the slowest, most in flight", format!("{count}, {slowest:.1?}, {most}"));
    assert!(most > 0.0, "{count} scrapes saw nothing under way");

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
