//! A connection, heard along: whoever does not speak HTTP/2 on it, or begins to say something and does not come to its end, is
//! hung up, and told of. What a frame says is for the server behind; here only its length counts, and that the server gave
//! the connection up.
//!
//! ```text
//!   connected ──▶ preface ──▶ between frames ◀──▶ in a frame      in the preface or a frame for too long: hung up
//! ```
//!
//! Between frames a caller may be silent as long as he likes: connections are kept.

use crate::callers::{Introduced, Peer, Quiet};
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// What a client says first: RFC 9113 section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long the preface may take, and each frame from its beginning. It is of some kilobytes, and clients send it in one go.
const PATIENCE: Duration = Duration::from_secs(15);

/// Those who were told of, by who they are.
pub(crate) type Complaints = Quiet<String>;

/// A connection that is heard along.
pub(crate) struct Heard<C> {
    pub(super) stream: C,
    peer: Arc<Peer>,
    complaints: Arc<Complaints>,
    /// Each connection is told of once.
    is_told_of: bool,
    /// How much of the preface has come.
    greeted: usize,
    theirs: Frames,
    ours: Frames,
    /// When what has begun has to be at its end.
    over: Option<Pin<Box<Sleep>>>,
}

impl<C: Introduced> Heard<C> {
    pub(crate) fn new(stream: C, complaints: Arc<Complaints>) -> Self {
        let peer = Arc::new(stream.peer());
        let (theirs, ours) = (Frames::default(), Frames::default());
        Self { stream, peer, complaints, is_told_of: false, greeted: 0, theirs, ours, over: None }
    }
}

impl<C> Heard<C> {
    /// Who is at the other end.
    pub(crate) fn peer(&self) -> Arc<Peer> {
        Arc::clone(&self.peer)
    }

    fn is_amid(&self) -> bool {
        self.greeted < PREFACE.len() || self.theirs.is_amid()
    }

    /// They have said something; nothing is that they have hung up.
    fn hear(&mut self, said: &[u8]) {
        if said.is_empty() {
            // Who says nothing at all only looked whether somebody is there.
            if self.is_amid() && self.greeted > 0 {
                self.complain("it was cut off");
            }
            return;
        }
        let (greeting, frames) = said.split_at(said.len().min(PREFACE.len() - self.greeted));
        if greeting != &PREFACE[self.greeted..][..greeting.len()] {
            self.complain("it is not HTTP/2");
            return;
        }
        self.greeted += greeting.len();
        let has_greeted = !greeting.is_empty() && self.greeted == PREFACE.len();
        // What begins now has its own time.
        if self.theirs.hear(frames, |_| {}) || has_greeted {
            self.over = None;
        }
    }

    /// Tells of them, unless they were told of just now.
    fn complain(&mut self, why: &str) {
        if std::mem::replace(&mut self.is_told_of, true) {
            return;
        }
        let who = self.peer.to_string();
        if let Some(unsaid) = self.complaints.speak_of(who.clone()) {
            let outcome = "NO_GRPC";
            tracing::info!(
                target: "audit", who, outcome, why, unsaid,
                "{who}: no gRPC on a connection: {why}; {unsaid} more of theirs were not told of"
            );
        }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Heard<C> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(context, buffer) {
            Poll::Ready(Ok(())) => {
                this.hear(&buffer.filled()[before..]);
                Poll::Ready(Ok(()))
            }
            Poll::Pending if this.is_amid() => {
                let over = this.over.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + PATIENCE)));
                ready!(over.as_mut().poll(context));
                this.complain("it was slow");
                // As if they had hung up.
                Poll::Ready(Ok(()))
            }
            other => other,
        }
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Heard<C> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(context, bytes))?;
        let mut given_up = None;
        this.ours.hear(&bytes[..written], |frame| given_up = given_up.or(frame.given_up()));
        if let Some(code) = given_up {
            this.complain(&format!("its frames are none (error {code} of HTTP/2)"));
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// Where one side's frames stand: RFC 9113 section 4.1.
#[derive(Debug, Default)]
struct Frames {
    /// The frame's head, and what a GOAWAY consists of.
    begin: [u8; 17],
    /// How much of the frame has come.
    come: usize,
}

impl Frames {
    const HEAD: usize = 9;
    const GOAWAY: u8 = 7;

    fn is_amid(&self) -> bool {
        self.come > 0
    }

    /// How long the frame is; endless until its head says it.
    fn whole(&self) -> usize {
        let [high, middle, low, ..] = self.begin;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        if self.come < Self::HEAD { usize::MAX } else { Self::HEAD + length }
    }

    /// Shows each frame that has come to its end by this, and tells whether one has.
    fn hear(&mut self, mut said: &[u8], mut show: impl FnMut(&Self)) -> bool {
        let mut any = false;
        while let Some((first, rest)) = said.split_first() {
            if let Some(byte) = self.begin.get_mut(self.come) {
                *byte = *first;
                self.come += 1;
                said = rest;
            } else {
                let some = said.len().min(self.whole() - self.come);
                self.come += some;
                said = &said[some..];
            }
            if self.whole() == self.come {
                show(self);
                self.come = 0;
                any = true;
            }
        }
        any
    }

    /// The error of a GOAWAY, unless it is a farewell in peace.
    fn given_up(&self) -> Option<u32> {
        let [_, _, _, kind, _, _, _, _, _, _, _, _, _, code @ ..] = self.begin;
        let code = u32::from_be_bytes(code);
        (kind == Self::GOAWAY && code != 0).then_some(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time::timeout,
    };

    impl Introduced for DuplexStream {
        fn peer(&self) -> Peer {
            Peer::Local(host::LocalPeer { user: 7, groups: vec![7] })
        }
    }

    /// A connection, and its other end.
    fn connected() -> (Heard<DuplexStream>, DuplexStream) {
        let (here, there) = duplex(1 << 16);
        (Heard::new(here, Arc::default()), there)
    }

    const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

    /// All that comes, for as long as it comes.
    async fn read(here: &mut Heard<DuplexStream>) -> (Vec<u8>, Duration) {
        let (start, mut all) = (Instant::now(), Vec::new());
        here.read_to_end(&mut all).await.unwrap();
        (all, start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_begun_ends_in_time_or_the_connection_does() {
        for begun in
            [&[][..], &PREFACE[..1], &PREFACE[..23], &[PREFACE, &PING[..1]].concat(), &[PREFACE, &PING[..16]].concat()]
        {
            let (mut here, mut there) = connected();
            there.write_all(begun).await.unwrap();
            assert_eq!(read(&mut here).await, (begun.to_vec(), PATIENCE));
            assert!(here.is_told_of);
        }
    }

    /// A byte now and then is not enough: the patience is for all of it.
    #[tokio::test(start_paused = true)]
    async fn a_slow_loris_is_hung_up() {
        let (mut here, mut there) = connected();
        let slowly = async {
            for byte in PREFACE {
                there.write_all(&[*byte]).await.unwrap();
                sleep_until(Instant::now() + Duration::from_secs(1)).await;
            }
        };
        let (heard, ()) = tokio::join!(read(&mut here), slowly);
        assert_eq!((heard.0.len(), heard.1), (15, PATIENCE));
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_to_his_ends_may_be_silent_between_them() {
        let (mut here, mut there) = connected();
        let mut buffer = [0; 1 << 10];
        // The end of one and the beginning of the next together: each has its own time.
        let said = [PREFACE, PING, PING, PING].concat();
        for part in [&said[..20], &said[20..30], &said[30..50], &said[50..]] {
            there.write_all(part).await.unwrap();
            assert_eq!(here.read(&mut buffer).await.unwrap(), part.len());
            let waits = timeout(Duration::from_secs(10), here.read(&mut buffer)).await;
            assert!(waits.is_err(), "{waits:?}");
        }
        let waits = timeout(Duration::from_secs(3600), here.read(&mut buffer)).await;
        assert!(waits.is_err() && !here.is_told_of, "{waits:?}");
        drop(there);
        assert!(read(&mut here).await.0.is_empty());
        assert!(!here.is_told_of);
    }

    #[tokio::test]
    async fn who_is_cut_off_or_speaks_otherwise_is_told_of() {
        for (said, is_told_of) in [
            (b"".to_vec(), false),
            (PREFACE.to_vec(), false),
            ([PREFACE, PING].concat(), false),
            (PREFACE[..10].to_vec(), true),
            ([PREFACE, &PING[..10]].concat(), true),
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), true),
            ([&PREFACE[..23], b"?"].concat(), true),
        ] {
            let (mut here, mut there) = connected();
            there.write_all(&said).await.unwrap();
            drop(there);
            assert_eq!(read(&mut here).await.0, said);
            assert_eq!(here.is_told_of, is_told_of, "{}", String::from_utf8_lossy(&said));
        }
    }

    /// However our own frames are cut up as they are written.
    #[tokio::test]
    async fn a_connection_that_the_server_gives_up_is_told_of() {
        let goaway = |code: u8| [0, 0, 10, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, code, b'o', b'k'];
        for (code, is_told_of) in [(0, false), (6, true)] {
            let said = [PING, &[0, 0, 0, 4, 1, 0, 0, 0, 0], &goaway(code), PING].concat();
            for size in 1..said.len() {
                let (mut here, _there) = connected();
                for part in said.chunks(size) {
                    here.write_all(part).await.unwrap();
                }
                assert_eq!((here.is_told_of, here.ours.is_amid()), (is_told_of, false), "{code} in parts of {size}");
            }
        }
    }
}
