//! Logs as a server on a socket sends them.

use std::{
    collections::BTreeMap,
    io::Write as _,
    sync::{Arc, Mutex},
};

use flate2::{Compression, write::GzEncoder};
use hearth_types::acme::Settings;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::ct::{
    head::tests::Signer,
    merkle::tests::{leaves, proof, root},
};

const TIME: u64 = 1_767_139_200_000;

/// A status, a header and a body.
#[derive(Clone)]
struct Answer(u16, &'static str, Vec<u8>);

type Answers = Arc<Mutex<BTreeMap<String, Answer>>>;

/// A server with answers by their paths; what it does not have is forbidden, as some stores of objects say.
struct Server {
    log: Log,
    http: Http,
    answers: Answers,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let url = format!("http://{}/log/", listener.local_addr().expect("an address"));
        let answers = Answers::default();
        let shared = Arc::clone(&answers);
        // Ends with the test's runtime.
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => request.push(byte),
                        Err(_) => break,
                    }
                }
                let line = String::from_utf8_lossy(&request).into_owned();
                let path = line.split(' ').nth(1).and_then(|path| path.strip_prefix("/log/")).unwrap_or_default();
                let found = shared.lock().expect("answers").get(path).cloned();
                let Answer(status, header, body) = found.unwrap_or(Answer(403, "", b"no".to_vec()));
                let head = format!(
                    "HTTP/1.1 {status} x\r\n{header}content-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
            }
        });
        let http = Http::for_log(&Settings::new("https://ca.example/dir")).expect("a client");
        Self { log: Log::parse(&url).expect("a log"), http, answers }
    }

    fn put(&self, path: &str, answer: Answer) {
        self.answers.lock().expect("answers").insert(path.to_owned(), answer);
    }

    fn put_body(&self, path: &str, body: impl AsRef<[u8]>) {
        self.put(path, Answer(200, "", body.as_ref().to_vec()));
    }

    fn remove(&self, path: &str) {
        assert!(self.answers.lock().expect("answers").remove(path).is_some(), "{path} was there");
    }

    /// The tiles of hashes of a tree with these leaves.
    fn put_tiles(&self, leaves: &[Hash]) {
        let mut hashes = leaves.to_vec();
        for level in 0.. {
            for (number, tile) in hashes.chunks(256).enumerate() {
                let tile_of = Tile { level: Some(level), number: number as u64, width: tile.len() as u64 };
                self.put_body(&tile_of.path(), tile.as_flattened());
            }
            hashes = hashes.chunks_exact(256).map(root).collect();
            if hashes.is_empty() {
                return;
            }
        }
    }

    async fn open(&self, known: Option<Api>) -> Result<Source<'_>, LogError> {
        Source::open(&self.http, &self.log, known).await
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

#[tokio::test]
async fn a_log_is_of_the_kind_by_which_it_answers() {
    let (mut server, signer) = (Server::start().await, Signer::new());
    let tree = leaves(7);
    let neither = server.open(None).await.err().expect("no log");
    assert!(matches!(neither, LogError::Neither { .. }) && neither.label() == Failure::Unreachable, "{neither}");
    server.put_body("ct/v1/get-sth", signer.sth(TIME, 7, &root(&tree)));
    assert_eq!(server.open(None).await.expect("a log").api, Api::Rfc6962);
    // A page for everything is no checkpoint.
    server.put_body("checkpoint", "<html>hello</html>");
    assert_eq!(server.open(None).await.expect("a log").api, Api::Rfc6962);
    server.put_body("checkpoint", signer.checkpoint(TIME, 7, &root(&tree)));
    assert_eq!(server.open(None).await.expect("a log").api, Api::Static);
    assert_eq!(server.open(Some(Api::Rfc6962)).await.expect("a log").api, Api::Rfc6962);
    // A checkpoint of another key's is not made good by a head that is right.
    server.log.key = Some(signer.key.clone());
    server.put_body("checkpoint", Signer::new().checkpoint(TIME, 7, &root(&tree)));
    let refused = server.open(None).await.err().expect("a wrong signature");
    assert_eq!(refused.label(), Failure::Signature, "{refused}");
    server.remove("ct/v1/get-sth");
    server.put("checkpoint", Answer(500, "", Vec::new()));
    let away = server.open(None).await.err().expect("it is away");
    assert_eq!(away.label(), Failure::Unreachable, "{away}");
}

#[tokio::test]
async fn a_static_log_proves_its_tree_by_its_tiles() {
    let (server, signer) = (Server::start().await, Signer::new());
    let all = leaves(70_000);
    server.put_tiles(&all);
    server.put_body("checkpoint", signer.checkpoint(TIME, 70_000, &root(&all)));
    for from in [0, 1, 255, 256, 300, 65_535, 65_536, 69_888, 69_999, 70_000] {
        let mut source = server.open(None).await.expect("a log");
        let prefix = source.begin(from).await.expect("a tree");
        assert_eq!((prefix.size(), prefix.root()), (from, root(&all[..from as usize])), "{from}");
        source.holds(&prefix).await.expect("it is of this tree");
        assert!(source.tiles.len() <= 8, "{} tiles", source.tiles.len());
    }
    // A past that is another one, by a leaf.
    let mut source = server.open(None).await.expect("a log");
    let mut other = Prefix::default();
    assert!(leaves(300).iter().rev().all(|hash| other.push(0, *hash)));
    assert_eq!(source.holds(&other).await.expect_err("another past").label(), Failure::Inconsistent);
    // The partial tile is gone, and the full one is there; then neither is; then one that is too short.
    let partial = "tile/0/273.p/112";
    server.remove(partial);
    let full = [&all[69_888..], &leaves(144)].concat();
    server.put_body("tile/0/273", full.as_flattened());
    let whole = server.open(None).await.expect("a log").begin(70_000).await.expect("a tree");
    assert_eq!(whole.root(), root(&all));
    server.remove("tile/0/273");
    let gone = server.open(None).await.expect("a log").begin(70_000).await.expect_err("no tile");
    assert!(matches!(&gone, LogError::Absent { url } if url.ends_with("/tile/0/273")), "{gone}");
    server.put_body(partial, &full.as_flattened()[..100]);
    let torn = server.open(None).await.expect("a log").begin(70_000).await.expect_err("no tile");
    assert!(torn.label() == Failure::Malformed && chain(&torn).contains("100 bytes"), "{torn}");
}

#[tokio::test]
async fn entries_come_compressed_or_not_and_never_without_end() {
    let (server, signer) = (Server::start().await, Signer::new());
    server.put_body("checkpoint", signer.checkpoint(TIME, 258, &[0; 32]));
    let source = server.open(None).await.expect("a log");
    let entry = |index: u8| [&[0; 8][..], &[0, 0, 0, 0, 1, b'c', 0, 8, 0, 0, 5, 0, 0, 0, 1, index, 0, 0]].concat();
    let tile = [entry(0), entry(1)].concat();
    let path = "tile/data/001.p/2";
    let (packed, bomb) = (gzip(&tile), gzip(&vec![0; MAX_TILE + 1]));
    for (header, body) in [
        ("", tile.clone()),
        ("content-encoding: identity\r\n", tile.clone()),
        ("content-encoding: gzip\r\n", packed.clone()),
        ("Content-Encoding: X-GZIP\r\n", packed.clone()),
    ] {
        server.put(path, Answer(200, header, body));
        let leaves = source.leaves(256).await.expect("entries");
        assert_eq!(leaves.len(), 2, "{header}");
        assert_eq!(source.leaves(257).await.expect("entries"), leaves[1..]);
    }
    for (header, body, why) in [
        ("content-encoding: br\r\n", packed.clone(), "gzip alone"),
        ("content-encoding: gzip\r\n", tile.clone(), "no gzip"),
        ("content-encoding: gzip\r\n", packed[..packed.len() - 9].to_vec(), "no gzip"),
        ("content-encoding: gzip\r\n", bomb, "at most"),
        ("", vec![0; MAX_TILE + 1], "more than"),
        ("", tile[..tile.len() - 1].to_vec(), "in the midst of entry 257"),
    ] {
        server.put(path, Answer(200, header, body));
        let error = source.leaves(256).await.expect_err(why);
        assert!(error.label() == Failure::Malformed && chain(&error).contains(why), "{}", chain(&error));
    }
    server.put("checkpoint", Answer(200, "", vec![b'a'; MAX_CHECKPOINT + 1]));
    assert!(matches!(server.open(Some(Api::Static)).await.err(), Some(LogError::TooLarge { .. })));
}

#[tokio::test]
async fn a_log_of_rfc_6962_proves_its_tree_by_consistency() {
    let (server, signer) = (Server::start().await, Signer::new());
    let all = leaves(300);
    server.put_body("ct/v1/get-sth", signer.sth(TIME, 300, &root(&all)));
    let put = |from: usize| {
        let texts: Vec<_> = proof(from, &all, true).iter().map(|hash| STANDARD.encode(hash)).collect();
        let body = serde_json::json!({"consistency": texts}).to_string();
        server.put_body(&format!("ct/v1/get-sth-consistency?first={from}&second=300"), body);
    };
    for from in [100, 255, 256, 299] {
        put(from);
    }
    let mut source = server.open(None).await.expect("a log");
    // A perfect tree is in no proof, and neither is the whole: a leaf before is begun with.
    for (near, size) in [(0, 0), (1, 0), (2, 0), (100, 100), (256, 255), (300, 299)] {
        let prefix = source.begin(near).await.expect("a tree");
        assert_eq!((prefix.size(), prefix.root()), (size, root(&all[..size as usize])), "{near}");
        source.holds(&prefix).await.expect("it is of this tree");
    }
    let mut known = source.begin(255).await.expect("a tree");
    assert!(known.push(0, all[255]));
    source.holds(&known).await.expect("it is of this tree");
    assert!(all[256..].iter().all(|hash| known.push(0, *hash)));
    source.holds(&known).await.expect("it is all");
    let mut other = Prefix::default();
    assert!(all[..100].iter().rev().all(|hash| other.push(0, *hash)));
    assert_eq!(source.holds(&other).await.expect_err("another past").label(), Failure::Inconsistent);
    // A head that is another tree's is proved by nothing.
    server.put_body("ct/v1/get-sth", signer.sth(TIME, 300, &root(&all[1..])));
    let mut strange = server.open(None).await.expect("a log");
    assert_eq!(strange.begin(100).await.expect_err("another tree").label(), Failure::Inconsistent);
    assert_eq!(strange.holds(&known).await.expect_err("another tree").label(), Failure::Inconsistent);
    server.put_body("ct/v1/get-sth-consistency?first=100&second=300", r#"{"consistency":["AAAA"]}"#);
    assert_eq!(source.begin(100).await.expect_err("no hash").label(), Failure::Malformed);
    server.put_body("ct/v1/get-entries?start=0&end=255", r#"{"entries":[]}"#);
    assert!(matches!(source.leaves(0).await, Err(LogError::Missing { entry: 0, size: 300 })));
}
