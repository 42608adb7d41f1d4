//! Downloads that break off: in a process, across processes, and with registries that resume wrongly.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hearth_registry::{Credentials, Progress, PullError, PullLimits, Puller};
use tempfile::{TempDir, tempdir};

use crate::image::TestImage;
use crate::server::{Body, Reply, Request, Server, honest, partial};
use crate::support::{amd64, assert_blobs_are_whole, import, insecure, pull};

/// Bytes of the layers.
const LAYER: usize = 600_000;

/// A server that answers requests for the second layer as `answer` says: of the number of the request, from 0, and the layer's bytes.
struct Scene {
    place: TempDir,
    server: Server,
    digest: String,
    bytes: Vec<u8>,
}

impl Scene {
    async fn new(answer: impl Fn(usize, &[u8], &Request) -> Option<Reply> + Send + Sync + 'static) -> Self {
        let image = TestImage::new(LAYER);
        let digest = image.layers[1]["digest"].as_str().unwrap().to_owned();
        let bytes = image.blobs.0[&digest].clone();
        let (asked, layer, of) = (AtomicUsize::new(0), bytes.clone(), digest.clone());
        let server = Server::start(move |request| {
            let honestly = || honest(&image.blobs, &image.index, request);
            if !request.is_for(&of) {
                return honestly();
            }
            answer(asked.fetch_add(1, Ordering::SeqCst), &layer, request).unwrap_or_else(honestly)
        })
        .await;
        Self { place: tempdir().unwrap(), server, digest, bytes }
    }

    fn puller(&self) -> Puller {
        Puller::new(insecure(&[&self.server.host])).unwrap()
    }

    fn layout(&self) -> PathBuf {
        self.place.path().join("layout")
    }

    fn partial_path(&self) -> PathBuf {
        self.layout().join("partial").join(format!("{}.partial", &self.digest[7..]))
    }

    /// As an earlier process would have left it.
    fn leave_partial(&self, bytes: &[u8]) {
        fs::create_dir_all(self.layout().join("partial")).unwrap();
        fs::write(self.partial_path(), bytes).unwrap();
    }

    async fn pull(&self) -> Result<u64, PullError> {
        pull(&self.puller(), &format!("{}/app:1", self.server.host), &self.layout()).await.map(|pulled| pulled.bytes)
    }

    /// The ranges that were asked for, of the second layer; empty for all of it.
    fn ranges(&self) -> Vec<String> {
        let of_layer = self.server.seen().into_iter().filter(|request| request.is_for(&self.digest));
        of_layer.map(|request| request.header("range").unwrap_or_default().to_owned()).collect()
    }

    async fn assert_pulls(&self) {
        self.pull().await.unwrap();
        assert_blobs_are_whole(&self.layout());
        import(&self.layout(), None);
        assert!(!self.layout().join("partial").exists());
    }
}

fn range(from: usize) -> String {
    format!("bytes={from}-")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_off_goes_on_where_it_ended() {
    let scene = Scene::new(|asked, bytes, _| match asked {
        0 => Some(Reply::new(200, Body::Cut(bytes[..300_000].to_vec(), bytes.len()))),
        1 => Some(Reply::status(503)),
        _ => None,
    })
    .await;
    scene.assert_pulls().await;
    assert_eq!(scene.ranges(), [String::new(), range(300_000), range(300_000)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_was_dropped_is_gone_on_from_by_another_puller() {
    let scene = Scene::new(|asked, bytes, _| {
        (asked == 0).then(|| Reply::new(200, Body::Silent(bytes[..400_000].to_vec(), bytes.len())))
    })
    .await;
    let name = format!("{}/app:1", scene.server.host).parse().unwrap();
    let (puller, platform, progress) = (scene.puller(), amd64(), Progress::default());
    let (layout, nobody) = (scene.layout(), Credentials::anonymous());
    let mut watch = progress.watch();
    let known = |_: &[hearth_image::Digest]| vec![];
    let pull = puller.pull(&name, &platform, &nobody, &layout, &known, &progress);
    let begun = async {
        // All but the silent one are there, and of that one what was written at once.
        let much =
            |now: &hearth_registry::Transferred| now.layers_done == 3 && now.bytes_done > (3 * LAYER + 200_000) as u64;
        tokio::time::timeout(Duration::from_secs(20), watch.wait_for(much)).await.expect("it comes that far").unwrap();
    };
    tokio::select! {
        biased;
        () = begun => {}
        ended = pull => panic!("{ended:?}"),
    }
    let left = fs::metadata(scene.partial_path()).unwrap().len() as usize;
    assert!(left > 200_000 && !layout.join("index.json").exists(), "{left}");
    scene.assert_pulls().await;
    assert_eq!(scene.ranges(), [String::new(), range(left)]);
    let others: Vec<_> = scene.server.seen().into_iter().filter(|request| request.is_for("/blobs/")).collect();
    assert_eq!(others.len(), 3 + 1 + 2, "blobs that were there were asked for again: {others:?}");
}

/// This test, run again as the process that is killed: host and layout, with a space between.
const CHILD: &str = "HEARTH_REGISTRY_TEST_PULL";

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_was_killed_is_gone_on_from_by_another_process() {
    if let Ok(arguments) = std::env::var(CHILD) {
        let (host, layout) = arguments.split_once(' ').unwrap();
        let ended = pull(&Puller::new(insecure(&[host])).unwrap(), &format!("{host}/app:1"), Path::new(layout)).await;
        panic!("it was to be killed: {ended:?}");
    }
    let scene = Scene::new(|asked, bytes, _| {
        (asked == 0).then(|| Reply::new(200, Body::Silent(bytes[..400_000].to_vec(), bytes.len())))
    })
    .await;
    let name = "resume::a_pull_that_was_killed_is_gone_on_from_by_another_process";
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(CHILD, format!("{} {}", scene.server.host, scene.layout().display()))
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let length = || fs::metadata(scene.partial_path()).map_or(0, |found| found.len() as usize);
    let begun = async {
        while length() < 200_000 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), begun).await.expect("it comes that far");
    child.kill().await.unwrap();
    let left = length();
    assert!(!scene.layout().join("index.json").exists());
    scene.assert_pulls().await;
    assert_eq!(scene.ranges(), [String::new(), range(left)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_layers_are_downloaded_at_a_time_and_no_more() {
    let image = TestImage::new(1000);
    let layers: Vec<_> = image.layers.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect();
    let of = layers.clone();
    let server = Server::start(move |request| {
        if let Some(digest) = of.iter().find(|digest| request.is_for(digest)) {
            return Reply::new(200, Body::Silent(Vec::new(), image.blobs.0[digest].len()));
        }
        honest(&image.blobs, &image.index, request)
    })
    .await;
    let asked = || layers.iter().map(|digest| server.count(digest)).sum::<usize>();
    for parallel in [1, 3] {
        let place = tempdir().unwrap();
        let mut config = insecure(&[&server.host]);
        config.limits = PullLimits { parallel_layers: parallel, tries: 1, ..config.limits };
        config.limits.idle = Duration::from_millis(500);
        let before = asked();
        let name = format!("{}/app:1", server.host);
        let error = pull(&Puller::new(config).unwrap(), &name, &place.path().join("layout")).await.unwrap_err();
        assert!(matches!(error, PullError::Unreachable { .. }), "{error}");
        assert_eq!(asked() - before, parallel);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_resumes_wrongly_is_asked_for_all_of_it() {
    type Wrong = fn(&[u8], &Request) -> Reply;
    let wrong: [(&str, Wrong); 6] = [
        ("another beginning", |bytes, _| partial(bytes, 7)),
        ("another total", |bytes, _| {
            Reply::new(206, Body::Full(bytes[9..].to_vec())).with("Content-Range", "bytes 9-19/20")
        }),
        ("no range", |bytes, _| Reply::new(206, Body::Full(bytes[9..].to_vec()))),
        ("416", |_, _| Reply::status(416)),
        ("other bytes", |bytes, _| partial(&vec![0; bytes.len()], 9)),
        ("more bytes", |bytes, _| {
            let range = format!("bytes 9-{}/{}", bytes.len() - 1, bytes.len());
            Reply::new(206, Body::Chunked(bytes.to_vec())).with("Content-Range", range)
        }),
    ];
    for (what, wrong) in wrong {
        let scene = Scene::new(move |_, bytes, request| request.header("range").map(|_| wrong(bytes, request))).await;
        let bytes = scene.bytes.clone();
        scene.leave_partial(&bytes[..9]);
        scene.assert_pulls().await;
        assert_eq!(scene.ranges(), [range(9), String::new()], "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_knows_no_ranges_is_read_from_the_beginning() {
    let scene = Scene::new(|_, bytes, _| Some(Reply::ok(bytes))).await;
    let bytes = scene.bytes.clone();
    scene.leave_partial(&bytes[..1000]);
    scene.assert_pulls().await;
    assert_eq!(scene.ranges(), [range(1000)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_and_is_wrong_is_dropped() {
    type Left = fn(&[u8]) -> Vec<u8>;
    let left: [(&str, Left, usize); 4] = [
        ("the beginning of something else", |bytes| vec![0; bytes.len() / 2], 2),
        ("something else as long", |bytes| vec![0; bytes.len()], 1),
        ("more than the blob has", |bytes| [bytes, b"x"].concat(), 1),
        ("all of it, not yet named", <[u8]>::to_vec, 0),
    ];
    for (what, left, asked) in left {
        let scene = Scene::new(|_, _, _| None).await;
        let bytes = scene.bytes.clone();
        scene.leave_partial(&left(&bytes));
        scene.assert_pulls().await;
        assert_eq!(scene.ranges().len(), asked, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_the_disk_damaged_is_downloaded_again() {
    let scene = Scene::new(|_, _, _| None).await;
    scene.assert_pulls().await;
    assert_eq!(scene.pull().await.unwrap(), 0);
    let path = scene.layout().join("blobs/sha256").join(&scene.digest[7..]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[77] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(scene.pull().await.unwrap(), scene.bytes.len() as u64);
    assert_blobs_are_whole(&scene.layout());
    assert_eq!(scene.ranges(), ["", ""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_breaks_off_and_lies_in_turn_is_given_up() {
    // It breaks off, resumes with other bytes, and so on.
    let scene = Scene::new(|_, bytes, request| match request.header("range") {
        None => Some(Reply::new(200, Body::Cut(bytes[..300_000].to_vec(), bytes.len()))),
        Some(_) => Some(partial(&vec![0; bytes.len()], 300_000)),
    })
    .await;
    let error = scene.pull().await.unwrap_err();
    assert!(matches!(error, PullError::Corrupt { .. } | PullError::Unreachable { .. }), "{error}");
    assert!(scene.ranges().len() <= 6, "{:?}", scene.ranges());
    assert_blobs_are_whole(&scene.layout());
}

#[tokio::test(flavor = "multi_thread")]
async fn links_in_the_layout_are_not_followed() {
    let scene = Scene::new(|_, _, _| None).await;
    let victim = scene.place.path().join("victim");
    fs::write(&victim, "mine").unwrap();
    fs::create_dir_all(scene.layout().join("partial")).unwrap();
    link(&victim, &scene.partial_path());
    let error = scene.pull().await.unwrap_err();
    assert!(matches!(error, PullError::Io { .. }), "{error}");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
}

fn link(to: &Path, at: &Path) {
    std::os::unix::fs::symlink(to, at).unwrap();
}
