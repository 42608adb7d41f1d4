//! The page as HTML. Everything in it but the frame is somebody's text, and escaped.

use super::view::{Light, Line, View};

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}ul{list-style:none;padding:0}li{margin:.6rem 0}\
.good{color:#17803d}.bad{color:#b3261e}.unknown{color:#8a6d00}small{color:#666}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}.good{color:#5fd38a}.bad{color:#ff8a80}.unknown{color:#e0c060}small{color:#999}}";

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// `body` is HTML.
fn frame(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <meta name=\"robots\" content=\"noindex\"><title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>{body}</body></html>\n",
        title = escape(title)
    )
}

/// A page that says one thing.
pub(super) fn sentence(text: &str) -> String {
    frame("Status", &format!("<p>{}</p>", escape(text)))
}

/// The page of whoever shows no token that is good.
pub(super) fn locked() -> String {
    sentence(
        "This page shows owners their devices and apps. It opens by a link, which whoever runs the region makes: hearth token create --status \
         --owner NAME. A link that was used here before has expired, or was taken back.",
    )
}

fn section(title: &str, lines: &[Line]) -> String {
    let line = |line: &Line| {
        let (class, mark) = match line.light {
            Light::Good => ("good", "&#9679;"),
            Light::Bad => ("bad", "&#9888;"),
            Light::Unknown => ("unknown", "?"),
        };
        let link = |host: &String| format!(" <a href=\"https://{0}/\" rel=\"noreferrer\">{0}</a>", escape(host));
        let hosts: String = line.hosts.iter().map(link).collect::<Vec<_>>().concat();
        format!(
            "<li><span class=\"{class}\">{mark}</span> <b>{}</b>: {}{hosts}</li>",
            escape(&line.name),
            escape(&line.says)
        )
    };
    let lines = lines.iter().map(line).collect::<Vec<_>>().concat();
    format!("<h2>{}</h2><ul>{lines}</ul>", escape(title))
}

/// The whole of it.
pub(super) fn overview(view: &View) -> String {
    let part = |title: &str, lines: &[Line], none: &str| match (lines, none) {
        ([], "") => String::new(),
        ([], none) => format!("<h2>{title}</h2><p>{none}</p>"),
        (lines, _) => section(title, lines),
    };
    let body = [
        part("Devices", &view.devices, "No device of yours has joined."),
        part("Apps", &view.apps, "No app is installed."),
        part("Domains", &view.domains, ""),
        format!(
            "<p><small>As the region knew it at {}. <a href=\"/out\">Forget the link here</a></small></p>",
            view.now.seconds()
        ),
    ];
    frame(&format!("What {} has", view.owner), &body.concat())
}

#[cfg(test)]
mod tests {
    use hearth_types::Timestamp;

    use super::*;

    #[test]
    fn what_others_wrote_is_text_and_nothing_else() {
        let hostile = "<script>alert(1)</script>\"'&";
        let line = Line {
            light: Light::Bad,
            name: hostile.into(),
            says: hostile.into(),
            hosts: vec!["a\" onload=\"x".into()],
        };
        let view = View {
            owner: hostile.into(),
            devices: vec![line.clone()],
            apps: vec![line.clone()],
            domains: vec![line],
            now: Timestamp(0),
        };
        let html = overview(&view);
        assert!(!html.contains("<script") && !html.contains("\" onload"), "{html}");
        assert_eq!(html.matches("&lt;script&gt;").count(), 8, "{html}");
    }
}
