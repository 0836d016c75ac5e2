//! A double of the socket that fills up on demand: what was accepted is sent, in order.
use super::*;
use quinn::UdpPoller;
use quinn::udp::RecvMeta;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

#[derive(Debug, Default)]
struct Double {
    /// Each send: its datagrams.
    sent: Mutex<Vec<Vec<Vec<u8>>>>,
    full: AtomicBool,
}

#[derive(Debug)]
struct Poller(Arc<Double>);

impl UdpPoller for Poller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.0.full.load(Ordering::SeqCst) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Double {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller(self))
    }
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        assert!(transmit.contents.len() <= SEND_BYTES_MAX);
        let each = transmit.segment_size.unwrap_or(transmit.contents.len());
        let datagrams: Vec<_> = transmit.contents.chunks(each).map(<[u8]>::to_vec).collect();
        assert!(datagrams.len() <= SEND_DATAGRAMS_MAX);
        self.sent.lock().unwrap().push(datagrams);
        Ok(())
    }
    fn poll_recv(
        &self,
        _: &mut Context<'_>,
        _: &mut [io::IoSliceMut<'_>],
        _: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        Poll::Pending
    }
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(([127, 0, 0, 1], 1).into())
    }
}

/// `count` numbered datagrams of `bytes` each, from `first` on.
fn datagrams(first: u32, count: u32, bytes: usize) -> Vec<u8> {
    (first..first + count)
        .flat_map(|number| {
            let mut datagram = vec![0; bytes];
            datagram[..4].copy_from_slice(&number.to_be_bytes());
            datagram
        })
        .collect()
}

fn transmit(contents: &[u8], bytes: usize, port: u16) -> Transmit<'_> {
    Transmit {
        destination: ([10, 0, 0, 1], port).into(),
        ecn: None,
        contents,
        segment_size: (contents.len() > bytes).then_some(bytes),
        src_ip: None,
    }
}

fn numbers(double: &Double) -> Vec<u32> {
    let sent = double.sent.lock().unwrap();
    let number = |datagram: &Vec<u8>| u32::from_be_bytes(datagram[..4].try_into().unwrap());
    sent.iter().flatten().map(number).collect()
}

async fn settle(double: &Double, expected: &[u32]) {
    let wait = async {
        while numbers(double).len() < expected.len() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait)
        .await
        .unwrap();
    assert_eq!(numbers(double), expected);
}

#[tokio::test]
async fn full_batches_join_and_leave_soon() {
    let double = Arc::new(Double::default());
    let batches = Batches::new(double.clone());
    for first in (0..50).step_by(10) {
        batches
            .send(&transmit(&datagrams(first, 10, 1449), 1449, 1))
            .unwrap();
    }
    let sizes: Vec<_> = double.sent.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(sizes, [40], "as many as one send takes");
    settle(&double, &(0..50).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn others_go_at_once_and_after_what_waits() {
    let double = Arc::new(Double::default());
    let batches = Batches::new(double.clone());
    batches
        .send(&transmit(&datagrams(0, 1, 60), 60, 1))
        .unwrap();
    assert_eq!(numbers(&double), [0]);
    batches
        .send(&transmit(&datagrams(1, 10, 1200), 1200, 1))
        .unwrap();
    assert_eq!(numbers(&double), [0]);
    batches
        .send(&transmit(&datagrams(11, 1, 60), 1200, 1))
        .unwrap();
    assert_eq!(numbers(&double), (0..12).collect::<Vec<_>>());
    // Another destination, another size.
    batches
        .send(&transmit(&datagrams(12, 10, 1200), 1200, 1))
        .unwrap();
    batches
        .send(&transmit(&datagrams(22, 10, 1200), 1200, 2))
        .unwrap();
    batches
        .send(&transmit(&datagrams(32, 10, 1300), 1300, 2))
        .unwrap();
    assert_eq!(numbers(&double), (0..32).collect::<Vec<_>>());
    drop(batches);
    assert_eq!(
        numbers(&double),
        (0..42).collect::<Vec<_>>(),
        "the end loses nothing"
    );
}

#[tokio::test]
async fn jumbo_batches_are_split() {
    let double = Arc::new(Double::default());
    let batches = Batches::new(double.clone());
    batches
        .send(&transmit(&datagrams(0, 10, 8948), 8948, 1))
        .unwrap();
    batches
        .send(&transmit(&datagrams(10, 3, 65_000), 65_000, 1))
        .unwrap();
    assert_eq!(numbers(&double), (0..13).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_full_socket_delays_and_loses_nothing() {
    let double = Arc::new(Double::default());
    let batches = Batches::new(double.clone());
    double.full.store(true, Ordering::SeqCst);
    let mut accepted = 0;
    for first in (0..1000).step_by(10) {
        match batches.send(&transmit(&datagrams(first, 10, 1449), 1449, 1)) {
            Ok(()) => accepted += 10,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                break;
            }
        }
    }
    assert_eq!(accepted, 40, "no more is kept than one send takes");
    tokio::task::yield_now().await;
    double.full.store(false, Ordering::SeqCst);
    settle(&double, &(0..accepted).collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn in_order_whatever_thread_sends() {
    let double = Arc::new(Double::default());
    let batches = Batches::new(double.clone());
    for first in (0..2000).step_by(10) {
        let batches = batches.clone();
        let sent =
            tokio::spawn(
                async move { batches.send(&transmit(&datagrams(first, 10, 1200), 1200, 1)) },
            );
        sent.await.unwrap().unwrap();
    }
    settle(&double, &(0..2000).collect::<Vec<_>>()).await;
}
