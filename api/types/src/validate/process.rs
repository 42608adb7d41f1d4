//! What a container's first process is given, and what it leaves behind.

use serde_json::Value;

use super::{
    Report, each,
    pod::{one_of, set},
    text,
};

/// The longest path of the file for a container's last message: the longest that Linux takes, with its end (`PATH_MAX`).
const MAX_PATH: usize = 4095;
/// Where Kubernetes has that file unless it is told otherwise: the one place in `/dev` for it.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// Validates the fields of one container.
pub(super) fn container(container: &Value, at: &str, report: &mut Report) {
    one_of(container, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"], at, report);
    if !set(container, "terminationMessagePath") {
        return;
    }
    let path = text(container, "terminationMessagePath");
    let field = format!("{at}.terminationMessagePath");
    if let Err(why) = message_path(path) {
        report.wrong(field, why);
    } else if each(container, "volumeMounts", at)
        .any(|(_, mount)| text(mount, "mountPath").trim_end_matches('/') == path)
    {
        report.wrong(field, "is where a volume is mounted; choose a file in it, or one elsewhere");
    }
}

/// Kubernetes takes any path and lets the container fail.
fn message_path(path: &str) -> Result<(), &'static str> {
    if !path.starts_with('/') || path.contains('\0') || path.len() > MAX_PATH {
        return Err("must be an absolute path");
    }
    if path.ends_with('/') || path.split('/').any(|part| matches!(part, "." | "..")) {
        return Err("must be the path of a file, without '.' and '..'");
    }
    let inside = |top: &str| path == top || path.strip_prefix(top).is_some_and(|rest| rest.starts_with('/'));
    if path != TERMINATION_LOG && ["/proc", "/sys", "/dev"].into_iter().any(inside) {
        return Err("must not be in /proc, /sys or /dev, but for /dev/termination-log");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causes(container: &Value) -> Vec<String> {
        let mut report = Report::default();
        self::container(container, "c", &mut report);
        report.causes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_file_for_the_last_message_is_a_path_that_can_be_one() {
        for path in ["/dev/termination-log", "/tmp/last", "/data/last", "/devices/last", "/..x"] {
            let container =
                json!({"terminationMessagePath": path, "volumeMounts": [{"name": "d", "mountPath": "/data"}]});
            assert_eq!(causes(&container), Vec::<String>::new(), "{path}");
        }
        for (path, why) in [
            ("tmp/last", "must be an absolute path"),
            ("/tmp/", "must be the path of a file"),
            ("/", "must be the path of a file"),
            ("/a/../b", "must be the path of a file"),
            ("/dev/null", "must not be in /proc, /sys or /dev"),
            ("/proc/self/x", "must not be in /proc"),
            ("/data", "is where a volume is mounted"),
        ] {
            let container =
                json!({"terminationMessagePath": path, "volumeMounts": [{"name": "d", "mountPath": "/data/"}]});
            let causes = causes(&container);
            let expected = format!("c.terminationMessagePath: {why}");
            assert!(causes.len() == 1 && causes[0].starts_with(&expected), "{path}: {causes:?}");
        }
    }

    #[test]
    fn policies_are_those_of_kubernetes() {
        for policy in ["File", "FallbackToLogsOnError"] {
            assert!(causes(&json!({"terminationMessagePolicy": policy})).is_empty(), "{policy}");
        }
        let wrong = causes(&json!({"terminationMessagePolicy": "Log"}));
        assert_eq!(
            wrong,
            ["c.terminationMessagePolicy: \"Log\" is not supported; must be one of File, FallbackToLogsOnError"]
        );
    }
}
