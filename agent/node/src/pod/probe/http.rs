//! `httpGet`: one request, and what it says of the pod.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures_util::future::{Either, select};
use hearth_pod::Answer;
use hearth_types::kinds::HTTPGetAction;
use http::{Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::tls;

/// What is read of a body, in bytes, as the kubelet has it.
const MAX_BODY: usize = 10 << 10;
/// How often a pod may send the probe elsewhere on itself, as Go's client has it.
const MAX_REDIRECTS: usize = 10;
/// Apps that keep probes out of their logs know them by this beginning.
const USER_AGENT: &str = concat!("kube-probe/hearth-", env!("CARGO_PKG_VERSION"));

/// What is got, and where.
struct Target {
    secure: bool,
    address: SocketAddr,
    /// With the query.
    path: String,
    /// The name that the pod is asked under, where the manifest gives one.
    host: Option<String>,
}

impl Target {
    fn url(&self) -> String {
        format!("{}://{}{}", if self.secure { "https" } else { "http" }, self.address, self.path)
    }

    /// Where a redirect leads; `None` where that is not this pod.
    fn redirected(&self, location: &str) -> Option<Self> {
        if !location.contains("://") && !location.starts_with('/') {
            // Beside what was asked for.
            let beside = self.path.split('?').next().unwrap_or_default();
            let folder = beside.rfind('/').map_or("/", |at| &beside[..=at]);
            return self.redirected(&format!("{folder}{location}"));
        }
        let uri: Uri = location.parse().ok()?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let next = Self { secure: self.secure, address: self.address, path, host: self.host.clone() };
        let Some(host) = uri.host() else { return Some(next) };
        let secure = uri.scheme_str().map_or(self.secure, |scheme| scheme == "https");
        let own = host.trim_matches(['[', ']']).parse() == Ok(self.address.ip());
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        own.then(|| Self { secure, address: SocketAddr::new(self.address.ip(), port), ..next })
    }
}

/// Whether the pod answers with 2xx or 3xx. Redirects are followed as far as they lead to the pod's own address.
pub(super) async fn ask(action: &HTTPGetAction, address: SocketAddr, limit: Duration) -> Answer {
    let Ok(got) = timeout(limit, follow(action, address)).await else {
        let url = target(action, address).url();
        return Answer::Bad(format!("Get {url:?}: no answer within {} s", limit.as_secs()));
    };
    match got {
        Ok((200..300, _)) => Answer::Good,
        Ok((300..400, body)) => Answer::Warning(format!("Probe terminated redirects, Response body: {body}")),
        Ok((status, _)) => Answer::Bad(format!("HTTP probe failed with statuscode: {status}")),
        Err(error) => Answer::Bad(error),
    }
}

/// The status and the beginning of the body where all redirects end.
pub(super) async fn follow(action: &HTTPGetAction, address: SocketAddr) -> Result<(u16, String), String> {
    let mut target = target(action, address);
    for _ in 0..=MAX_REDIRECTS {
        let failed = |error: String| format!("Get {:?}: {error}", target.url());
        let (status, location, body) = once(action, &target).await.map_err(failed)?;
        let next = location.filter(|_| (300..400).contains(&status)).and_then(|location| target.redirected(&location));
        match next {
            Some(next) => target = next,
            None => return Ok((status, body)),
        }
    }
    Err(format!("Get {:?}: stopped after {MAX_REDIRECTS} redirects", target.url()))
}

fn target(action: &HTTPGetAction, address: SocketAddr) -> Target {
    let asked = action.path.as_deref().unwrap_or("/");
    let slash = if asked.starts_with('/') { "" } else { "/" };
    let named = action.http_headers.iter().flatten().find(|one| one.name.eq_ignore_ascii_case("host"));
    Target {
        secure: action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
        address,
        path: format!("{slash}{}", escape(asked)),
        host: named.map(|one| one.value.clone()),
    }
}

/// What may not stand in a request's first line, in percent signs.
fn escape(path: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(byte);
    let path = path.split('#').next().unwrap_or_default();
    path.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

async fn once(action: &HTTPGetAction, target: &Target) -> Result<(u16, Option<String>, String), String> {
    let text = |error: std::io::Error| error.to_string();
    let stream = TcpStream::connect(target.address).await.map_err(text)?;
    if !target.secure {
        return exchange(action, target, stream).await;
    }
    let named = target.host.as_deref().map(|host| host.split(':').next().unwrap_or_default().to_owned());
    let name = named.and_then(|name| ServerName::try_from(name).ok());
    let name = name.unwrap_or_else(|| ServerName::from(target.address.ip()));
    let config = tls::config().ok_or_else(|| "there is no TLS here".to_owned())?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(text)?;
    exchange(action, target, stream).await
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    action: &HTTPGetAction,
    target: &Target,
    stream: S,
) -> Result<(u16, Option<String>, String), String> {
    let text = |error: hyper::Error| error.to_string();
    let request = request(action, target).map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let answer = Box::pin(async move { Ok(read(sender.send_request(request).await.map_err(text)?).await) });
    // The connection may end before its last bytes are taken.
    match select(answer, Box::pin(connection)).await {
        Either::Left((answer, _)) => answer,
        Either::Right((_, answer)) => answer.await,
    }
}

fn request(action: &HTTPGetAction, target: &Target) -> Result<Request<Empty<Bytes>>, http::Error> {
    let host = target.host.clone().unwrap_or_else(|| target.address.to_string());
    let mut request = Request::get(&target.path).header(header::HOST, host);
    let given = || action.http_headers.iter().flatten();
    for (name, value) in [(header::USER_AGENT, USER_AGENT), (header::ACCEPT, "*/*")] {
        if !given().any(|one| one.name.eq_ignore_ascii_case(name.as_str())) {
            request = request.header(name, value);
        }
    }
    for one in given().filter(|one| !one.name.eq_ignore_ascii_case("host")) {
        request = request.header(&one.name, &one.value);
    }
    request.body(Empty::new())
}

async fn read(answer: Response<Incoming>) -> (u16, Option<String>, String) {
    let status = answer.status().as_u16();
    let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut body = Limited::new(answer.into_body(), MAX_BODY);
    let mut text = Vec::new();
    // What breaks off, or goes on for ever, was an answer all the same.
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            text.extend_from_slice(data);
        }
    }
    (status, location, String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    fn action(value: Value) -> HTTPGetAction {
        serde_json::from_value(value).expect("an action")
    }

    /// Answers each connection with the next of these texts, and collects what was asked.
    async fn server(answers: Vec<String>) -> (SocketAddr, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let serving = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.expect("a head"));
                }
                asked.push(String::from_utf8(head).expect("text"));
                let answer = answer.replace("PORT", &address.port().to_string());
                // The probe may have heard enough before it is all said.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
            asked
        });
        (address, serving)
    }

    #[tokio::test]
    async fn the_status_says_how_a_pod_is() {
        let warning = |text: &str| Answer::Warning(format!("Probe terminated redirects, Response body: {text}"));
        let bad = |status: u16| Answer::Bad(format!("HTTP probe failed with statuscode: {status}"));
        let long = format!("HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n{}", "x".repeat(100_000));
        let own = "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /in?a=b\r\n\r\n";
        let whole = "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: http://127.0.0.1:PORT/in\r\n\r\n";
        let beside = "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: login\r\n\r\n";
        let foreign = "HTTP/1.1 302 Found\r\nContent-Length: 3\r\nLocation: http://192.0.2.1/\r\n\r\nfar";
        for (answers, expected) in [
            (vec!["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], Answer::Good),
            (vec!["HTTP/1.1 204 No Content\r\n\r\n"], Answer::Good),
            (vec![long.as_str()], Answer::Good),
            (vec!["HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"], bad(503)),
            (vec!["HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"], bad(404)),
            (vec!["HTTP/1.1 304 Not Modified\r\n\r\n"], warning("")),
            (vec![foreign], warning("far")),
            (vec![own, "HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n"], bad(500)),
            (vec![whole, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], Answer::Good),
            (vec![beside, "HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n"], bad(500)),
        ] {
            let asked = answers.len();
            let (address, serving) = server(answers.into_iter().map(str::to_owned).collect()).await;
            let answer = ask(&action(json!({"port": 1, "path": "/"})), address, Duration::from_secs(10)).await;
            assert_eq!(answer, expected);
            assert_eq!(serving.await.expect("it was asked").len(), asked);
        }
        let answers = vec![own.to_owned(); MAX_REDIRECTS + 1];
        let (address, _) = server(answers).await;
        let Answer::Bad(text) = ask(&action(json!({"port": 1})), address, Duration::from_secs(10)).await else {
            panic!("it goes in circles")
        };
        assert!(text.contains("stopped after 10 redirects"), "{text}");
    }

    #[tokio::test]
    async fn what_is_asked_is_what_the_manifest_says() {
        let (address, serving) = server(vec!["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned()]).await;
        let action = action(json!({"port": 1, "path": "a b?c=ä#d", "httpHeaders": [
            {"name": "Host", "value": "app.test"}, {"name": "X-A", "value": "1"}, {"name": "x-a", "value": "2"},
            {"name": "Accept", "value": "text/plain"}]}));
        assert_eq!(ask(&action, address, Duration::from_secs(10)).await, Answer::Good);
        let asked = serving.await.expect("it was asked").remove(0);
        let mut lines: Vec<String> = asked.trim_end().lines().map(str::to_owned).collect();
        assert_eq!(lines.remove(0), "GET /a%20b?c=%C3%A4 HTTP/1.1");
        lines.sort();
        let agent = format!("user-agent: {USER_AGENT}");
        assert_eq!(lines, ["accept: text/plain", "host: app.test", agent.as_str(), "x-a: 1", "x-a: 2"]);
    }

    #[tokio::test]
    async fn who_does_not_answer_in_time_is_not_well() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let answer = ask(&action(json!({"port": 1})), address, Duration::from_secs(1)).await;
        assert_eq!(answer, Answer::Bad(format!("Get \"http://{address}/\": no answer within 1 s")));
    }
}
