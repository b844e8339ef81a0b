//! The page's part of signing (`auth.js`) in a JavaScript engine, against the server's own check: what it sends, and at whom it
//! stops.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Uri};
use rquickjs::{Context, Ctx, Function, Runtime};
use tokio::time::Instant;

use super::AUTH;
use crate::dirs::Dirs;
use crate::master::admin::access::{Access, Head, Policy};
use crate::master::admin::signature::Challenger;
use crate::master::admin::token::Tokens;

/// The address that the page was loaded from.
const PAGE: &str = "127.0.0.1:9700";

/// The program that answers at [`PAGE`].
enum Peer {
    /// A server at that address or another, to which another program passes everything on.
    Server(Box<Policy>, &'static str),
    /// A program that answers this, whatever is asked.
    Other {
        status: u16,
        body: &'static str,
    },
    Nobody,
}

fn server() -> Policy {
    let dir = tempfile::tempdir().unwrap();
    let tokens = Tokens::open(&Dirs { runtime: dir.path().into(), state: dir.path().into() }).unwrap();
    Policy {
        tokens: Arc::new(tokens),
        hosts: Vec::new(),
        challenger: Challenger::new().unwrap(),
        started: Instant::now(),
    }
}

/// The answer as the page's `send` has it, or `None` if there is none.
fn answer(peer: &Peer, method: &str, path: &str, authorization: &str) -> Option<String> {
    let (policy, local) = match peer {
        Peer::Nobody => return None,
        Peer::Other { status, body } => return Some(format!(r#"{{"status":{status},"proof":null,"body":{body}}}"#)),
        Peer::Server(policy, local) => (policy, local),
    };
    if path == "/debug/admin/challenge" {
        return Some(format!(r#"{{"status":200,"proof":null,"body":{{"challenge":"{}"}}}}"#, policy.challenge()));
    }
    let mut headers = HeaderMap::new();
    // Another program that passes it on says what the server wants to hear.
    headers.insert("host", local.parse().unwrap());
    headers.insert("authorization", authorization.parse().unwrap());
    let (method, uri): (Method, Uri) = (method.parse().unwrap(), path.parse().unwrap());
    let head = Head { method: &method, uri: &uri, headers: &headers };
    let (status, proof) = match policy.check(Access::Token, local.parse().unwrap(), head) {
        Ok(proof) => (200, proof),
        Err(denied) => (denied.status.as_u16(), denied.proof),
    };
    let proof = proof.map_or("null".into(), |proof| format!("\"{}\"", proof.as_str()));
    Some(format!(r#"{{"status":{status},"proof":{proof},"body":{{"pid":7}}}}"#))
}

/// A page with a session of `token`, whose requests go to `peer`.
struct Page {
    context: Context,
    peer: Rc<RefCell<Peer>>,
    /// All that has left the page.
    sent: Rc<RefCell<Vec<String>>>,
}

impl Page {
    fn open(token: &str, peer: Peer) -> Page {
        let context = Context::full(&Runtime::new().unwrap()).unwrap();
        let (peer, sent) = (Rc::new(RefCell::new(peer)), Rc::new(RefCell::new(Vec::new())));
        let page = Page { context, peer, sent };
        let (peer, sent) = (page.peer.clone(), page.sent.clone());
        page.context.with(|ctx| {
            let send = move |method: String, path: String, authorization: String| {
                sent.borrow_mut().push(format!("{method} {path} {authorization}"));
                answer(&peer.borrow(), &method, &path, &authorization)
            };
            ctx.globals().set("wire", Function::new(ctx.clone(), send).unwrap()).unwrap();
            ctx.eval::<(), _>(AUTH.text).unwrap();
            let session = format!(
                r#"const session = new Session("{token}", "{PAGE}", async (method, path, headers) => {{
                    const answer = wire(method, path, headers.authorization ?? "");
                    if (!answer) throw new TypeError("failed to fetch");
                    return JSON.parse(answer);
                }});"#
            );
            ctx.eval::<(), _>(session).unwrap();
        });
        page
    }

    /// How a call ends: the status, or the kind of the error.
    fn call(&self, method: &str, path: &str) -> String {
        self.context.with(|ctx| {
            let script = format!(
                r#"globalThis.ended = "never"; session.call("{method}", "{path}").then(
                    (response) => {{ ended = String(response.status); }},
                    (error) => {{ ended = error instanceof Unknown ? "unknown" : error instanceof Unreachable ? "unreachable" : String(error); }});"#
            );
            ctx.eval::<(), _>(script).unwrap();
            while Ctx::execute_pending_job(&ctx) {}
            ctx.eval("ended").unwrap()
        })
    }

    fn meets(&self, peer: Peer) {
        *self.peer.borrow_mut() = peer;
    }

    #[track_caller]
    fn assert_kept(&self, token: &str) {
        for sent in self.sent.borrow().iter() {
            assert!(!sent.contains(token), "the token has left the page: {sent}");
        }
    }
}

#[test]
fn page_and_server_agree_and_the_token_stays_in_the_page() {
    let policy = server();
    let token = policy.tokens.admin().expose().to_owned();
    let page = Page::open(&token, Peer::Server(Box::new(policy), PAGE));
    assert_eq!(page.call("GET", "/debug/admin/status"), "200");
    assert_eq!(page.call("POST", "/debug/admin/reload"), "200");
    assert_eq!(page.sent.borrow().len(), 3, "one challenge is good for more than one request");
    page.assert_kept(&token);
}

#[test]
fn page_stops_at_a_server_that_does_not_know_its_token() {
    let policy = server();
    let token = policy.tokens.admin().expose().to_owned();
    let page = Page::open(&token, Peer::Server(Box::new(policy), PAGE));
    assert_eq!(page.call("GET", "/debug/admin/status"), "200");
    for other in [
        Peer::Server(Box::new(server()), PAGE),
        Peer::Other { status: 200, body: r#"{"challenge":"x"}"# },
        Peer::Other { status: 200, body: "null" },
        Peer::Other { status: 401, body: r#"{"challenge":"x"}"# },
        Peer::Other { status: 404, body: "{}" },
    ] {
        page.meets(other);
        assert_eq!(page.call("GET", "/debug/admin/status"), "unknown");
        assert_eq!(page.call("POST", "/debug/admin/shutdown"), "unknown");
    }
    page.assert_kept(&token);
}

#[test]
fn another_program_on_the_port_cannot_pass_requests_on() {
    let policy = server();
    let token = policy.tokens.admin().expose().to_owned();
    // The server has moved to another port, and the program has taken the one of the page.
    let page = Page::open(&token, Peer::Server(Box::new(policy), "127.0.0.1:40000"));
    assert_eq!(page.call("POST", "/debug/admin/shutdown"), "unknown");
    page.assert_kept(&token);
}

#[test]
fn page_stops_when_the_token_was_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = Dirs { runtime: dir.path().into(), state: dir.path().into() };
    let policy = Policy { tokens: Arc::new(Tokens::open(&dirs).unwrap()), ..server() };
    let (tokens, token) = (policy.tokens.clone(), policy.tokens.admin().expose().to_owned());
    let page = Page::open(&token, Peer::Server(Box::new(policy), PAGE));
    assert_eq!(page.call("GET", "/debug/admin/status"), "200");
    tokens.replace().unwrap();
    assert_eq!(page.call("GET", "/debug/admin/status"), "unknown");
}

#[test]
fn page_goes_on_with_a_newer_challenge_and_with_another_process_of_the_server() {
    let policy = server();
    let (tokens, token) = (policy.tokens.clone(), policy.tokens.admin().expose().to_owned());
    let page = Page::open(&token, Peer::Server(Box::new(policy), PAGE));
    assert_eq!(page.call("GET", "/debug/admin/status"), "200");
    if let Peer::Server(policy, _) = &mut *page.peer.borrow_mut() {
        policy.started -= Duration::from_secs(61);
    }
    assert_eq!(page.call("GET", "/debug/admin/status"), "200");
    page.meets(Peer::Nobody);
    assert_eq!(page.call("GET", "/debug/admin/status"), "unreachable");
    page.meets(Peer::Other { status: 502, body: "null" });
    assert_eq!(page.call("GET", "/debug/admin/status"), "unreachable", "a proxy's word");
    page.meets(Peer::Server(Box::new(Policy { tokens, ..server() }), PAGE));
    assert_eq!(page.call("GET", "/debug/admin/status"), "200");
}
