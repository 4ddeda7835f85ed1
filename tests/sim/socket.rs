//! Deadly frames on the socket, from somebody who may call: he is hung up and told of once, and others do not notice.

#![allow(clippy::disallowed_methods, reason = "pauses of an attacker")]

use crate::{
    audit::{heard, listen},
    machine::SimStage,
    tls::{PREFACE, cut_off, latency, no_frames},
};
use agent::config::Config;
use std::time::{Duration, Instant};
use tests::stage::Stage;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{sleep, timeout},
};

/// More than what has begun may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Somebody who has said this.
async fn saying(stage: &SimStage, bytes: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(stage.socket()).await.unwrap();
    // It may hang up before all of it is sent.
    let _sent = stream.write_all(bytes).await;
    stream
}

/// Waits until he is hung up.
async fn is_hung_up(mut stream: UnixStream) {
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it is hung up").ok();
}

/// The agent has told of one connection, and why.
#[track_caller]
fn told_once(why: &str) {
    let told: Vec<_> = heard().into_iter().filter(|line| line["outcome"] == "NO_GRPC").collect();
    assert!(told.len() == 1 && told[0]["why"].contains(why) && told[0]["who"].starts_with("uid "), "{why}: {told:?}");
}

#[tokio::test]
async fn frames_that_are_none() {
    listen();
    let whys = ["frames are none", "frames are none", "frames are none", "not HTTP/2"];
    for (frames, why) in no_frames().into_iter().zip(whys) {
        let stage = SimStage::new().await;
        let mut others = stage.client();
        for _ in 0..3 {
            is_hung_up(saying(&stage, &frames).await).await;
            others.list().await.unwrap();
            stage.client().list().await.unwrap();
        }
        told_once(why);
    }
    for begun in [cut_off(), PREFACE[..20].to_vec()] {
        let stage = SimStage::new().await;
        for _ in 0..3 {
            let mut stream = saying(&stage, &begun).await;
            stream.shutdown().await.unwrap();
            is_hung_up(stream).await;
            stage.client().list().await.unwrap();
        }
        told_once("cut off");
    }
}

/// Two hundred who say nothing, or the beginning of something, or a byte now and then: they have their places for some seconds, and
/// others do not wait for them.
#[tokio::test]
async fn half_open_and_slow() {
    const MANY: usize = 200;
    listen();
    let mut config = Config::default();
    config.limits.connections = MANY + 10;
    let stage = SimStage::with(config).await;
    let mut others = stage.client();
    latency(&mut others).await;
    let before = latency(&mut others).await;
    let mut silent = Vec::new();
    for number in 0..MANY {
        let begun = [&[][..], &PREFACE[..10], &cut_off()][number % 3].to_vec();
        silent.push(saying(&stage, &begun).await);
    }
    let mut loris = saying(&stage, &[]).await;
    let (mut slowly, start) = (PREFACE.iter(), Instant::now());
    let mut during = Vec::new();
    while let Some(byte) = slowly.next()
        && loris.write_all(&[*byte]).await.is_ok()
    {
        during.push(latency(&mut others).await);
        stage.client().list().await.unwrap();
        sleep(Duration::from_secs(1)).await;
    }
    // A busy machine may be slow at any moment; if it was as quick at some, nobody waited for the silent ones.
    let best = *during.iter().min().unwrap();
    println!("median of a list by the socket: {before:?} before, {best:?} beside {MANY} half-open connections");
    assert!(best <= before * 2, "{before:?} before, {best:?} during");
    is_hung_up(loris).await;
    for stream in silent {
        is_hung_up(stream).await;
    }
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    others.list().await.unwrap();
    told_once("slow");
}
