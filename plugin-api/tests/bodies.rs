//! Bodies across the boundary: whole, streamed, with trailers, broken, dropped and slowly read.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use baton_plugin_api::http_body::{Body as _, Frame, SizeHint};
use baton_plugin_api::testing::{Plugin, block_on, eventually, request};
use baton_plugin_api::{Body, Bytes, CollectError, HeaderMap, HeaderValue, IntoApp, Request, handler_with, tokio};

async fn echo(request: Request) -> Body {
    request.into_body()
}

/// Hands the body on frame by frame, trailers too.
async fn relay(request: Request) -> Body {
    struct Relay(Body);
    impl baton_plugin_api::http_body::Body for Relay {
        type Data = Bytes;
        type Error = baton_plugin_api::BoxError;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            Pin::new(&mut self.0).poll_frame(cx)
        }
    }
    Body::new(Relay(request.into_body()))
}

fn sample(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 % 253) as u8).collect()
}

/// Frames of `size`, `count` of them; says how many were asked for.
fn frames(size: usize, count: usize, asked: Arc<AtomicUsize>) -> Body {
    struct Frames(usize, usize, Arc<AtomicUsize>);
    impl baton_plugin_api::http_body::Body for Frames {
        type Data = Bytes;
        type Error = std::convert::Infallible;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            if self.1 == 0 {
                return Poll::Ready(None);
            }
            self.1 -= 1;
            self.2.fetch_add(1, Ordering::SeqCst);
            Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b'x'; self.0])))))
        }
    }
    Body::new(Frames(size, count, asked))
}

#[test]
fn three_megabytes_come_back_byte_for_byte() {
    let body = sample(3 << 20);
    assert_eq!(Plugin::start(echo).post("/", body.clone()).bytes(), &body);
    assert_eq!(Plugin::start(relay).post("/", body.clone()).bytes(), &body);
    let streamed = |count| {
        Body::generate(async move |mut out| {
            for _ in 0..count {
                out.send(sample(10_000)).await?;
            }
            Ok(())
        })
    };
    for plugin in [Plugin::start(echo), Plugin::start(relay), Plugin::spawned(relay).start().unwrap()] {
        assert_eq!(plugin.post("/", streamed(300)).bytes(), &sample(10_000).repeat(300));
    }
}

#[test]
fn large_pieces_cross_without_a_copy() {
    static PIECE: [u8; 4096] = [b'y'; 4096];
    async fn piece() -> Bytes {
        Bytes::from_owner(&PIECE[..])
    }
    let plugin = Plugin::start(piece);
    let data =
        block_on(async { plugin.call(request("GET", "/", "")).await.into_body().data().await.unwrap().unwrap() });
    assert_eq!(data.as_ptr(), PIECE.as_ptr());
}

#[test]
fn trailers_cross_both_ways() {
    let body = Body::generate(async |mut out| {
        out.send("data").await?;
        let mut trailers = HeaderMap::new();
        trailers.append("x-sum", HeaderValue::from_static("1"));
        trailers.append("x-sum", HeaderValue::from_static("2"));
        out.trailers(trailers).await?;
        Ok(())
    });
    let answer = Plugin::start(relay).post("/", body);
    assert_eq!(answer.text(), "data");
    let sums: Vec<_> = answer.trailers().unwrap().get_all("x-sum").iter().collect();
    assert_eq!(sums, ["1", "2"]);
}

#[test]
fn a_body_of_known_length_says_so_on_both_sides() {
    async fn length(request: Request) -> String {
        format!("{:?}", request.body().size_hint().exact())
    }
    let plugin = Plugin::start(length);
    assert_eq!(plugin.post("/", vec![0; 77]).text(), "Some(77)");
    assert_eq!(plugin.get("/").text(), "Some(0)");
    assert_eq!(plugin.post("/", frames(1, 1, Arc::default())).text(), "None");

    block_on(async {
        let plugin = Plugin::start(echo);
        let body = plugin.call(request("POST", "/", vec![0; 100_000])).await.into_body();
        assert_eq!(body.size_hint().exact(), Some(100_000));
    });
}

#[test]
fn a_short_body_in_one_piece_is_not_streamed() {
    struct Once(Option<Bytes>, Arc<AtomicUsize>);
    impl baton_plugin_api::http_body::Body for Once {
        type Data = Bytes;
        type Error = std::convert::Infallible;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            self.1.fetch_add(1, Ordering::SeqCst);
            Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
        }
        fn is_end_stream(&self) -> bool {
            self.0.is_none()
        }
        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
        }
    }
    static POLLS: std::sync::Mutex<Option<Arc<AtomicUsize>>> = std::sync::Mutex::new(None);
    let polls = Arc::new(AtomicUsize::new(0));
    *POLLS.lock().unwrap() = Some(polls.clone());
    async fn once() -> Body {
        Body::new(Once(Some(Bytes::from_static(b"once")), POLLS.lock().unwrap().clone().unwrap()))
    }
    let plugin = Plugin::start(once);
    let response = block_on(plugin.call(request("GET", "/", "")));
    assert_eq!(polls.load(Ordering::SeqCst), 1, "read before the body crossed");
    assert_eq!(response.body().size_hint().exact(), Some(4));
}

#[test]
fn what_is_not_pulled_is_not_made() {
    let asked = Arc::new(AtomicUsize::new(0));
    fn app() -> impl IntoApp {
        handler_with((), async |(), request: Request| request.into_body())
    }
    let plugin = Plugin::start(app);
    block_on(async {
        let mut body = plugin.call(request("POST", "/", frames(64 << 10, usize::MAX, asked.clone()))).await.into_body();
        assert_eq!(asked.load(Ordering::SeqCst), 0, "nobody reads yet");
        for count in 1..=3 {
            body.data().await.unwrap().unwrap();
            assert_eq!(asked.load(Ordering::SeqCst), count);
        }
    });
}

#[test]
fn a_dropped_body_cancels_its_producer() {
    static DROPPED: AtomicBool = AtomicBool::new(false);
    struct Noted;
    impl Drop for Noted {
        fn drop(&mut self) {
            // Timers may be dropped only where a runtime is entered: so must we be.
            assert!(tokio::runtime::Handle::try_current().is_ok());
            DROPPED.store(true, Ordering::SeqCst);
        }
    }
    async fn endless() -> Body {
        let noted = Noted;
        Body::generate(async move |mut out| {
            let _noted = noted;
            loop {
                out.send("more").await?;
            }
        })
    }
    let plugin = Plugin::start(endless);
    block_on(async {
        let mut body = plugin.call(request("GET", "/", "")).await.into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "more");
        assert!(!DROPPED.load(Ordering::SeqCst));
        drop(body);
    });
    assert!(DROPPED.load(Ordering::SeqCst));
    assert!(plugin.logs().is_empty());
}

#[test]
fn a_body_that_fails_breaks_off_with_its_text() {
    async fn failing() -> Body {
        Body::generate(async |mut out| {
            out.send("begun").await?;
            Err("the disk is full".into())
        })
    }
    let answer = Plugin::start(failing).get("/");
    assert_eq!(answer.bytes(), "begun");
    assert_eq!(answer.error().unwrap(), "the disk is full");

    // The other way: a client that breaks off is an error for the handler.
    async fn collect(request: Request) -> Result<Bytes, CollectError> {
        request.into_body().bytes(1000).await
    }
    let broken = Body::generate(async |mut out| {
        out.send("begun").await?;
        Err("reset by peer".into())
    });
    let answer = Plugin::start(collect).post("/", broken);
    assert_eq!((answer.status().as_u16(), answer.text()), (400, "failed to read the body\n"));
}

#[test]
fn a_limit_holds_for_known_and_unknown_lengths() {
    async fn collect(request: Request) -> Result<String, CollectError> {
        request.into_body().text(10).await
    }
    let plugin = Plugin::start(collect);
    assert_eq!(plugin.post("/", "0123456789").text(), "0123456789");
    assert_eq!(plugin.post("/", "0123456789a").status(), 413);
    assert_eq!(plugin.post("/", frames(5, 2, Arc::default())).text(), "xxxxxxxxxx");
    assert_eq!(plugin.post("/", frames(5, 3, Arc::default())).status(), 413);
    assert_eq!(plugin.post("/", frames(11, 1, Arc::default())).status(), 413);
    assert_eq!(plugin.post("/", vec![0xff]).status(), 400);
    assert_eq!(plugin.get("/").text(), "");
}

#[test]
fn json_is_read_and_refused() {
    async fn sum(request: Request) -> Result<String, CollectError> {
        Ok(request.into_body().json::<Vec<u32>>(1000).await?.iter().sum::<u32>().to_string())
    }
    let plugin = Plugin::start(sum);
    assert_eq!(plugin.post("/", "[1,2,3]").text(), "6");
    assert!(plugin.post("/", "[1,").text().starts_with("the body is not the JSON expected"));
}

#[test]
fn a_writer_may_move_to_a_task_of_its_own() {
    async fn tasks() -> Body {
        Body::generate(async |mut out| {
            let task = tokio::spawn(async move {
                for number in 0..100 {
                    out.send(format!("{number},")).await?;
                }
                Ok::<_, baton_plugin_api::Closed>(out)
            });
            let mut out = task.await??;
            out.send("end").await?;
            Ok(())
        })
    }
    let expected: String = (0..100).map(|number| format!("{number},")).chain(["end".to_owned()]).collect();
    assert_eq!(Plugin::start(tasks).get("/").text(), expected);
}

#[test]
fn a_writer_learns_that_nobody_reads_any_more() {
    static CLOSED: AtomicBool = AtomicBool::new(false);
    async fn tasks() -> Body {
        Body::generate(async |mut out| {
            tokio::spawn(async move {
                while out.send("x").await.is_ok() {}
                CLOSED.store(true, Ordering::SeqCst);
            });
            std::future::pending().await
        })
    }
    let plugin = Plugin::start(tasks);
    block_on(async {
        let mut body = plugin.call(request("GET", "/", "")).await.into_body();
        body.data().await.unwrap().unwrap();
    });
    eventually(|| CLOSED.load(Ordering::SeqCst));
}

#[test]
fn a_partly_read_request_body_can_be_handed_on() {
    async fn rest(request: Request) -> Body {
        let mut body = request.into_body();
        body.data().await.unwrap().unwrap();
        body
    }
    assert_eq!(Plugin::start(rest).post("/", frames(10, 3, Arc::default())).text(), "x".repeat(20));
    async fn all(request: Request) -> Body {
        let mut body = request.into_body();
        while body.data().await.is_some() {}
        body
    }
    assert_eq!(Plugin::start(all).post("/", frames(10, 3, Arc::default())).text(), "");
}

#[test]
fn a_stream_is_a_body() {
    struct Numbers(u32);
    impl futures_core::Stream for Numbers {
        type Item = Result<String, std::convert::Infallible>;
        fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            self.0 += 1;
            Poll::Ready((self.0 <= 3).then(|| Ok(self.0.to_string())))
        }
    }
    async fn numbers() -> Body {
        Body::from_stream(Numbers(0))
    }
    assert_eq!(Plugin::start(numbers).get("/").text(), "123");
}
