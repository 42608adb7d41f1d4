//! What a user sees of an app that does not answer. Pure.

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::Full;

use super::target::Outage;

/// How a client wants to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Html,
    Json,
    Text,
}

/// After how many seconds to try again.
const SOON: u32 = 2;
/// After how many seconds where somebody has to do something first.
const LATER: u32 = 30;

fn form(headers: &HeaderMap) -> Form {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let kinds: Vec<String> =
        accept.flat_map(|value| value.split(',')).map(|kind| kind.trim().to_ascii_lowercase()).collect();
    let has = |name: &str| kinds.iter().any(|kind| kind.split(';').next().map(str::trim) == Some(name));
    if has("text/html") {
        Form::Html
    } else if has("application/json") {
        Form::Json
    } else {
        Form::Text
    }
}

/// What happened, in a heading and a sentence; a word for programs; when to try again.
fn words(outage: &Outage) -> (StatusCode, &'static str, &'static str, String, u32) {
    let down = StatusCode::SERVICE_UNAVAILABLE;
    match outage {
        Outage::Stopped => {
            (down, "Stopped", "This app is stopped", "Its owner has stopped it. Its data is kept.".into(), LATER)
        }
        Outage::Starting(None) => {
            (down, "Starting", "This app is starting", "It will be here in a moment.".into(), SOON)
        }
        Outage::Starting(Some(why)) => {
            (down, "Starting", "This app is starting", format!("It is not ready yet: {why}."), SOON)
        }
        Outage::Broken(why) => (
            down,
            "Failed",
            "This app cannot run",
            format!("Its device reports: {why}. Its owner can see more with `hearth describe pod`."),
            LATER,
        ),
        Outage::Crashing(how) => (
            down,
            "Crashed",
            "This app crashed",
            format!("The last time, {how}. It is started again by itself; its owner can see why with `hearth logs`."),
            SOON * 5,
        ),
        Outage::Stopping => {
            (down, "Stopping", "This app is being restarted or moved", "It is being taken down now.".into(), SOON)
        }
        Outage::Absent => {
            (down, "NotRunning", "This app is not running", "Nothing of it runs on its device now.".into(), SOON * 5)
        }
        Outage::NoPort(port) => (
            down,
            "NoSuchPort",
            "This app cannot be reached",
            format!("Its containers have no port {port:?}. Its developer has to correct that."),
            LATER,
        ),
        Outage::Unreachable => (
            down,
            "NotListening",
            "This app does not answer yet",
            "It runs, and does not take connections: it may still be starting.".into(),
            SOON,
        ),
        Outage::TimedOut => (
            StatusCode::GATEWAY_TIMEOUT,
            "Timeout",
            "This app took too long",
            "It took the request and did not answer in time.".into(),
            SOON * 5,
        ),
    }
}

/// The answer in place of the app's.
pub(super) fn outage(outage: &Outage, host: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
    let (status, word, heading, sentence, retry) = words(outage);
    let refresh = (retry < LATER).then_some(retry);
    let mut response = render(form(headers), status, word, heading, &sentence, host, refresh);
    response.headers_mut().insert(header::RETRY_AFTER, retry.into());
    response
}

/// The answer to a request that is for a name that this connection does not serve (RFC 9110 section 15.5.20).
pub(super) fn misdirected(host: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
    let sentence = "This connection was made for another name.";
    render(form(headers), StatusCode::MISDIRECTED_REQUEST, "Misdirected", "Wrong connection", sentence, host, None)
}

/// The answer to a request that cannot be understood.
pub(super) fn bad(sentence: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
    render(form(headers), StatusCode::BAD_REQUEST, "BadRequest", "Bad request", sentence, "", None)
}

fn render(
    form: Form,
    status: StatusCode,
    word: &str,
    heading: &str,
    sentence: &str,
    host: &str,
    refresh: Option<u32>,
) -> Response<Full<Bytes>> {
    let (kind, body) = match form {
        Form::Html => ("text/html; charset=utf-8", html(heading, sentence, host, refresh)),
        Form::Json => (
            "application/json",
            serde_json::json!({"status": status.as_u16(), "reason": word, "message": format!("{heading}. {sentence}")})
                .to_string()
                + "\n",
        ),
        Form::Text => ("text/plain; charset=utf-8", format!("{heading}. {sentence}\n")),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let fixed = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
        (header::VARY, "accept"),
    ];
    for (name, value) in fixed {
        if let Ok(value) = http::HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    response
}

fn html(heading: &str, sentence: &str, host: &str, refresh: Option<u32>) -> String {
    let refresh = refresh.map_or(String::new(), |after| format!("<meta http-equiv=\"refresh\" content=\"{after}\">"));
    let (heading, sentence, host) = (escape(heading), escape(sentence), escape(host));
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">{refresh}<title>{heading}</title><style>\
         body{{font:1.1rem/1.6 system-ui,sans-serif;max-width:34rem;margin:18vh auto 0;padding:0 1.5rem;\
         color:#222;background:#fbfaf8}}h1{{font-size:1.6rem}}small{{color:#777}}\
         @media(prefers-color-scheme:dark){{body{{color:#ddd;background:#1b1b1a}}}}</style></head>\
         <body><h1>{heading}</h1><p>{sentence}</p><p><small>{host} &middot; Hearth</small></p></body></html>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn page(accept: Option<&str>, what: &Outage) -> (StatusCode, String, String) {
        let mut headers = HeaderMap::new();
        if let Some(accept) = accept {
            headers.insert(header::ACCEPT, accept.parse().expect("a value"));
        }
        let response = outage(what, "a<b>.test", &headers);
        assert!(response.headers().contains_key(header::RETRY_AFTER));
        let kind = response.headers()[header::CONTENT_TYPE].to_str().expect("text").to_owned();
        let status = response.status();
        let mut body = Box::pin(response.into_body());
        let frame = std::pin::pin!(body.frame());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let std::task::Poll::Ready(Some(Ok(frame))) = Future::poll(frame, &mut context) else {
            panic!("a page has a body")
        };
        (status, kind, String::from_utf8(frame.into_data().expect("data").to_vec()).expect("text"))
    }

    #[test]
    fn browsers_programs_and_people_at_a_shell_are_told_alike() {
        let (status, kind, body) = page(Some("text/html,application/xhtml+xml,*/*;q=0.8"), &Outage::Starting(None));
        assert_eq!((status.as_u16(), kind.as_str()), (503, "text/html; charset=utf-8"));
        assert!(body.contains("This app is starting") && body.contains("refresh"));
        assert!(body.contains("a&lt;b&gt;.test"), "{body}");
        let (_, kind, body) = page(Some("application/json"), &Outage::Stopped);
        assert_eq!(kind, "application/json");
        let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(body["reason"], "Stopped");
        let (_, kind, body) = page(Some("*/*"), &Outage::Crashing("it ended with exit code 3 (Error)".into()));
        assert_eq!(kind, "text/plain; charset=utf-8");
        assert!(body.contains("exit code 3"));
        assert_eq!(page(None, &Outage::TimedOut).0.as_u16(), 504);
    }
}
