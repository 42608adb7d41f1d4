//! Every client verb of the binary, as kubectl's users type it: what is printed where, and the exit code.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, instance::Instance};

/// What a command did.
#[derive(Debug)]
struct Ran {
    out: String,
    err: String,
    code: i32,
}

/// Runs a line of words; a word may be `'quoted words'`.
fn run(instance: &Instance, line: &str) -> Result<Ran> {
    run_with(instance, line, "")
}

fn run_with(instance: &Instance, line: &str, input: &str) -> Result<Ran> {
    let mut command = instance.hearth([]);
    command.args(words(line)).env("HEARTH_LOG", "off");
    let done = command::output(&mut command, input.as_bytes(), command::LIMIT)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ran { out: text(&done.stdout), err: text(&done.stderr), code: done.status.code().unwrap_or(-1) })
}

/// Words apart by spaces, but for those between single quotes, as a shell has them.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
    for c in line.chars() {
        match c {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// It succeeds, and prints these texts.
fn prints(instance: &Instance, line: &str, parts: &[&str]) -> Result<String> {
    let ran = run(instance, line)?;
    ensure!(ran.code == 0, "{line}: {ran:?}");
    for part in parts {
        ensure!(ran.out.contains(part), "{line}\nexpected: {part}\n{}\n{}", ran.out, ran.err);
    }
    Ok(ran.out)
}

/// It succeeds, and prints exactly this.
fn exactly(instance: &Instance, line: &str, expected: &str) -> Result<()> {
    let ran = run(instance, line)?;
    ensure!(ran.code == 0 && ran.out == expected, "{line}\nexpected: {expected:?}\n{ran:?}");
    Ok(())
}

/// It fails, and says these texts on stderr.
fn fails(instance: &Instance, line: &str, parts: &[&str]) -> Result<Ran> {
    let ran = run(instance, line)?;
    ensure!(ran.code != 0, "{line} was expected to fail: {ran:?}");
    for part in parts {
        ensure!(ran.err.contains(part), "{line}\nexpected: {part}\nsaid: {}", ran.err);
    }
    Ok(ran)
}

/// A command that goes on, with what it has printed.
struct Following {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Following {
    fn start(instance: &Instance, line: &str) -> Result<Self> {
        let number = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
        let out = instance.path().join(format!("following-{number}.out"));
        let err = out.with_extension("err");
        let mut command = instance.hearth([]);
        command.args(words(line)).stdin(Stdio::null());
        command.stdout(fs::File::create(&out)?).stderr(fs::File::create(&err)?);
        Ok(Self { child: command.spawn()?, out, err })
    }

    fn printed(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    /// Waits until it has printed something.
    fn prints(&self, instance: &Instance, what: &str, holds: impl Fn(&str) -> bool) -> Result<String> {
        instance.eventually(what, || {
            let text = self.printed();
            let err = fs::read_to_string(&self.err).unwrap_or_default();
            ensure!(holds(&text), "printed: {text}\nstderr: {err}");
            Ok(text)
        })
    }

    /// Waits until it ends; its exit code.
    fn ends(&mut self, instance: &Instance) -> Result<i32> {
        instance.eventually("it ends", || {
            let status = self.child.try_wait()?.context("it still runs")?;
            status.code().context("it was killed")
        })
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(name: &str, data: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}, namespace: alice, labels: {{app: {name}}}}}, data: {{{data}}}}}\n---\n"
    )
}

fn pod(name: &str, containers: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: alice, labels: {{app: {name}}}}}, \
         spec: {{terminationGracePeriodSeconds: 1, containers: [{containers}]}}}}\n---\n"
    )
}

const SLEEPER: &str = "{name: main, image: busybox, args: [sleep, '100000']}";

#[test]
fn get_and_its_forms() -> Result<()> {
    let instance = Instance::up("none")?;
    let i = &instance;
    exactly(i, "get cm -n alice", "")?;
    ensure!(run(i, "get cm -n alice")?.err == "No resources found in alice namespace.\n");
    ensure!(run(i, "get cm -A")?.err == "No resources found\n");
    instance.apply(
        &(config("a", "x: '1', file.txt: two")
            + &config("b", "DB_HOST: db")
            + &config("pod-10", "")
            + &config("pod-2", "")),
    )?;
    let table = prints(i, "get configmaps -n alice", &["NAME", "DATA", "AGE"])?;
    ensure!(table.lines().count() == 5 && table.lines().nth(1).is_some_and(|line| line.starts_with("a ")), "{table}");
    ensure!(!prints(i, "get cm -n alice --no-headers", &[])?.contains("NAME"));
    prints(i, "get cm -A", &["NAMESPACE", "alice "])?;
    exactly(i, "get cm a b -n alice -o name", "configmap/a\nconfigmap/b\n")?;
    exactly(i, "get cm -n alice -l app=b -o name", "configmap/b\n")?;
    exactly(i, "get cm -n alice -l app=b -o name --field-selector metadata.name=a", "")?;
    exactly(i, "get cm -n alice --field-selector metadata.name=a -o name", "configmap/a\n")?;
    let one: serde_json::Value = serde_json::from_str(&prints(i, "get cm/a -n alice -o json", &[])?)?;
    ensure!(one["kind"] == "ConfigMap" && one["data"]["file.txt"] == "two", "{one}");
    let list: serde_json::Value = serde_json::from_str(&prints(i, "get cm -n alice -o json", &[])?)?;
    ensure!(list["kind"] == "List" && list["items"].as_array().is_some_and(|items| items.len() == 4), "{list}");
    prints(i, "get cm b -n alice -o yaml", &["DB_HOST: db", "kind: ConfigMap"])?;
    exactly(i, "get cm b -n alice -o jsonpath={.data.DB_HOST}", "db")?;
    exactly(
        i,
        "get cm -n alice -o 'jsonpath={range .items[*]}{.metadata.name}={.data.DB_HOST}{\"\\n\"}{end}'",
        "a=\nb=db\npod-10=\npod-2=\n",
    )?;
    exactly(
        i,
        "get cm -n alice --sort-by=.metadata.name -o name",
        "configmap/a\nconfigmap/b\nconfigmap/pod-2\nconfigmap/pod-10\n",
    )?;
    let columns = prints(i, "get cm a b -n alice -o custom-columns=N:.metadata.name,HOST:.data.DB_HOST", &[])?;
    ensure!(columns == "N   HOST\na   <none>\nb   db\n", "{columns}");
    prints(i, "get cm -n alice -L app --show-labels", &["APP", "LABELS", "app=b"])?;
    // Several kinds at once.
    let several =
        prints(i, "get cm,ns,devices -n alice", &["configmap/a", "namespace/alice", "device.hearth.dev/nas"])?;
    ensure!(several.matches("NAME").count() == 3, "{several}");
    prints(i, "get cm/a ns/alice -n alice", &["configmap/a", "namespace/alice"])?;
    // What is not there.
    let ran = fails(i, "get cm a x y -n alice", &[])?;
    ensure!(ran.out.contains("\na "), "{ran:?}");
    ensure!(
        ran.err
            == "Error from server (NotFound): configmaps \"x\" not found\nError from server (NotFound): configmaps \"y\" not found\n",
        "{ran:?}"
    );
    ensure!(fails(i, "get pod x -n alice", &[])?.err == "Error from server (NotFound): pods \"x\" not found\n");
    exactly(i, "get cm a x -n alice --ignore-not-found -o name", "configmap/a\n")?;
    exactly(i, "get pod x -n alice --ignore-not-found", "")?;
    // What is wrong.
    fails(i, "get pds", &["error: ", "doesn't have a resource type \"pds\"", "did you mean \"pods\"?"])?;
    fails(i, "get jobs", &["resource type \"jobs\"", "it has namespaces"])?;
    fails(i, "get cm a -l x=y", &["name cannot be provided when a selector is specified"])?;
    fails(i, "get cm a -A", &["cannot be retrieved by name across all namespaces"])?;
    fails(i, "get cm -o xml", &["xml", "custom-columns"])?;
    fails(i, "get cm -o jsonpath={.a", &["\"}\" is expected"])?;
    fails(i, "get cm -l =x", &["=x"])?;
    fails(i, "get pods --field-selector spec.nonsense=1", &["spec.nonsense", "status.phase"])?;
    fails(i, "get", &["required"])?;
    prints(i, "api-resources", &["NAME", "SHORTNAMES", "pvc", "apps/v1", "hearth.dev/v1alpha1", "Install"])?;
    prints(i, "api-resources --namespaced=false -o name", &["nodes\n", "devices.hearth.dev\n"])?;
    prints(
        i,
        "explain pod.spec.containers",
        &["KIND:       Pod", "FIELD: containers <[]Container>", "name\t<string> -required-"],
    )?;
    fails(i, "explain pod.spec.nonsense", &["field \"nonsense\" does not exist"])?;
    prints(i, "version", &["Client Version: ", "Server Version: ", "zone hearth.internal"])?;
    prints(i, "version -o json", &["clientVersion", "serverVersion"])?;
    prints(i, "version --client", &["Client Version: "])?;
    ensure!(prints(i, "token create --owner bob", &[])?.trim().lines().count() == 1);
    ensure!(prints(i, "token create --any-owner", &[])?.trim().lines().count() == 1);
    fails(i, "token create", &["--owner"])?;
    let tokens: serde_json::Value = serde_json::from_str(&prints(i, "token ls -o json", &[])?)?;
    let bobs = tokens["items"].as_array().context("a list")?.iter().find(|one| one["owner"] == "bob");
    let id = bobs.and_then(|one| one["id"].as_str()).context("bob's token")?.to_owned();
    prints(i, "token ls", &["ID", "OWNER", "bob", "<any>", "unused", &id])?;
    exactly(i, &format!("token delete {id}"), &format!("token {id:?} deleted\n"))?;
    ensure!(!prints(i, "token ls", &[])?.contains(&id));
    let mut ls = instance.hearth(["image", "ls", "--data-dir"]);
    ensure!(command::succeed(ls.arg(instance.path()))?.starts_with("REFERENCE"));
    for shell in ["bash", "zsh", "fish"] {
        prints(i, &format!("completion {shell}"), &["hearth", "rollout"])?;
    }
    Ok(())
}

#[test]
fn manifests_are_applied_created_replaced_and_deleted() -> Result<()> {
    let instance = Instance::up("none")?;
    let i = &instance;
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::create_dir(dir.path().join("deep"))?;
    fs::write(path("a.yaml"), config("a", "x: '1'"))?;
    fs::write(path("b.yaml"), config("b", "x: '1'") + &config("c", "x: '1'"))?;
    fs::write(
        path("deep/d.json"),
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"d","namespace":"alice"}}"#,
    )?;
    let (a, b, all) = (path("a.yaml"), path("b.yaml"), dir.path().display().to_string());
    for flag in ["--dry-run", "--dry-run=server"] {
        exactly(i, &format!("apply -f {a} {flag}"), "configmap/a created (server dry run)\n")?;
    }
    exactly(i, &format!("apply -f {a} --dry-run=client"), "configmap/a created (dry run)\n")?;
    fails(i, "get cm a -n alice", &["NotFound"])?;
    exactly(i, &format!("apply -f {a}"), "configmap/a created\n")?;
    exactly(i, &format!("apply -f {a},{b}"), "configmap/a unchanged\nconfigmap/b created\nconfigmap/c created\n")?;
    exactly(i, &format!("apply -f {a} --dry-run=client"), "configmap/a unchanged (dry run)\n")?;
    prints(i, &format!("apply -f {all}"), &["configmap/c unchanged"])?;
    prints(i, &format!("apply -R -f {all}"), &["configmap/d created"])?;
    let ran = run_with(i, "apply -f -", &config("a", "x: '2'"))?;
    ensure!(ran.out == "configmap/a configured\n", "{ran:?}");
    exactly(i, &format!("apply -f {a} -o name"), "configmap/a\n")?;
    exactly(i, &format!("apply -f {a} -o jsonpath={{.data.x}}"), "1")?;
    // A manifest of another namespace than the one asked for.
    fails(i, &format!("apply -f {a} -n bob"), &["provided object \"alice\" does not match the namespace \"bob\""])?;
    // Too large, named before it is sent.
    fs::write(path("big"), config("big", &format!("x: {}", "y".repeat(1_600_000))))?;
    fails(i, &format!("apply -f {}", path("big")), &["ConfigMap \"big\" has 1600", "at most 1572864"])?;
    fails(i, "apply -f /nonexistent.yaml", &["error: cannot read /nonexistent.yaml"])?;
    fails(i, "apply", &["--filename"])?;
    fails(i, &format!("apply -f {a} --dry-run=maybe"), &["maybe"])?;
    // Cluster-scoped objects have no namespace, whatever their manifest says.
    let twice = "{apiVersion: v1, kind: Namespace, metadata: {name: carol, namespace: x}}\n---\n";
    let ran = run_with(i, "apply -f -", &twice.repeat(2))?;
    ensure!(ran.code != 0 && ran.err.contains("\"carol\" is defined twice"), "{ran:?}");
    let ran = run_with(i, "apply -f -", twice)?;
    ensure!(ran.out == "namespace/carol created\n", "{ran:?}");
    let ran = run_with(i, "delete -f -", twice)?;
    ensure!(ran.code == 0 && ran.out == "namespace \"carol\" deleted\n", "{ran:?}");
    // Create and replace.
    fails(
        i,
        &format!("create -f {a}"),
        &["Error from server (AlreadyExists)", "a.yaml", "configmaps \"a\" already exists"],
    )?;
    let e = path("e.yaml");
    fs::write(&e, config("e", "x: '1'"))?;
    fails(i, &format!("replace -f {e}"), &["Error from server (NotFound)", "configmaps \"e\" not found"])?;
    exactly(i, &format!("create -f {e}"), "configmap/e created\n")?;
    fs::write(&e, config("e", "y: '2'"))?;
    exactly(i, &format!("replace -f {e}"), "configmap/e replaced\n")?;
    exactly(i, "get cm e -n alice -o jsonpath={.data}", r#"{"y":"2"}"#)?;
    let stale = "{apiVersion: v1, kind: ConfigMap, metadata: {name: e, namespace: alice, resourceVersion: '1'}}";
    let ran = run_with(i, "replace -f -", stale)?;
    ensure!(
        ran.code != 0
            && ran.err.contains("(Conflict)")
            && ran.err.contains("Operation cannot be fulfilled on configmaps \"e\""),
        "{ran:?}"
    );
    // Delete.
    exactly(i, "delete cm e -n alice --dry-run=client", "configmap \"e\" deleted (dry run)\n")?;
    exactly(i, &format!("delete -f {e}"), "configmap \"e\" deleted\n")?;
    fails(i, &format!("delete -f {e}"), &["Error from server (NotFound): configmaps \"e\" not found"])?;
    exactly(i, &format!("delete -f {e} --ignore-not-found"), "")?;
    exactly(i, "delete cm -l app=b -n alice", "configmap \"b\" deleted\n")?;
    let ran = fails(i, "delete cm a x -n alice", &["Error from server (NotFound): configmaps \"x\" not found\n"])?;
    ensure!(ran.out == "configmap \"a\" deleted\n", "{ran:?}");
    prints(i, "delete cm --all -n alice", &["configmap \"c\" deleted", "configmap \"d\" deleted"])?;
    ensure!(run(i, "delete cm --all -n alice")?.err == "No resources found\n");
    fails(i, "delete", &["name what to delete"])?;
    fails(i, "delete cm -n alice", &["no name was specified"])?;
    fails(i, "delete cm a --all -n alice", &["name cannot be provided when a selector or --all is specified"])?;
    fails(i, &format!("delete cm a -f {a}"), &["cannot be used with"])?;
    fails(i, "delete cm a --cascade=orphan", &["--cascade=orphan is not supported"])?;
    fails(i, "delete cm a --force --now", &["cannot be used with"])?;
    fails(i, "delete ns default", &["Error from server (Forbidden)", "default"])?;
    Ok(())
}

#[test]
fn fields_of_objects_are_changed() -> Result<()> {
    let instance = Instance::up("none")?;
    let i = &instance;
    instance.apply(&(config("a", "x: '1'") + &config("b", "x: '1'")))?;
    exactly(i, "label cm a -n alice color=red", "configmap/a labeled\n")?;
    exactly(i, "label cm a -n alice color=red", "configmap/a not labeled\n")?;
    fails(i, "label cm a -n alice color=blue", &["'color' already has a value (red), and --overwrite is false"])?;
    exactly(i, "label cm a -n alice color=blue --overwrite", "configmap/a labeled\n")?;
    exactly(i, "get cm -n alice -l color=blue -o name", "configmap/a\n")?;
    exactly(i, "label cm --all -n alice tier=x color-", "configmap/a labeled\nconfigmap/b labeled\n")?;
    exactly(i, "label cm/a -n alice tier-", "configmap/a unlabeled\n")?;
    fails(i, "label cm a -n alice bad=a/b", &["Error from server (Invalid)", "a/b"])?;
    fails(i, "label cm x -n alice a=b", &["Error from server (NotFound): configmaps \"x\" not found"])?;
    fails(i, "label cm a -n alice", &["say what to set (KEY=VALUE) or to remove (KEY-)"])?;
    exactly(i, "annotate cm a -n alice 'note=two words'", "configmap/a annotated\n")?;
    exactly(i, "get cm a -n alice -o jsonpath={.metadata.annotations.note}", "two words")?;
    exactly(i, "patch cm a -n alice -p '{\"data\": {\"y\": \"2\"}}'", "configmap/a patched\n")?;
    exactly(i, "patch cm a -n alice --type=merge -p 'data: {x: null}'", "configmap/a patched\n")?;
    exactly(i, "patch cm a -n alice -p '{\"data\": {\"y\": \"2\"}}'", "configmap/a patched (no change)\n")?;
    exactly(i, "get cm a -n alice -o jsonpath={.data}", r#"{"y":"2"}"#)?;
    // A dry run says what would be, and changes nothing.
    for (dry_run, told) in [("client", "(dry run)"), ("server", "(server dry run)")] {
        exactly(i, &format!("label cm a -n alice x=y --dry-run={dry_run}"), &format!("configmap/a labeled {told}\n"))?;
        exactly(
            i,
            &format!("annotate cm a -n alice x=y --dry-run={dry_run}"),
            &format!("configmap/a annotated {told}\n"),
        )?;
        exactly(
            i,
            &format!("patch cm a -n alice -p '{{\"data\": {{\"z\": \"3\"}}}}' --dry-run={dry_run}"),
            &format!("configmap/a patched {told}\n"),
        )?;
        exactly(
            i,
            &format!("taint nodes nas x=y:NoSchedule --dry-run={dry_run}"),
            &format!("node/nas tainted {told}\n"),
        )?;
        exactly(
            i,
            "get cm a -n alice -o jsonpath={.data}{.metadata.labels.x}{.metadata.annotations.x}",
            r#"{"y":"2"}"#,
        )?;
        exactly(i, "get node nas -o jsonpath={.spec.taints}", "")?;
    }
    fails(i, "patch cm a -n alice --type=json -p '[]'", &["--type=json (RFC 6902) is not supported"])?;
    fails(i, "patch cm a -n alice -p nonsense", &["must be a map of fields"])?;
    fails(i, "patch cm a -n alice -p '{\"nonsense\": 1}'", &["nonsense: unknown field"])?;
    // Nodes.
    exactly(i, "cordon nas", "node/nas cordoned\n")?;
    exactly(i, "cordon nas", "node/nas already cordoned\n")?;
    prints(i, "get nodes", &["Ready,SchedulingDisabled"])?;
    exactly(i, "uncordon node/nas", "node/nas uncordoned\n")?;
    fails(i, "cordon attic", &["Error from server (NotFound): nodes \"attic\" not found"])?;
    exactly(i, "taint nodes nas room=attic:NoSchedule", "node/nas tainted\n")?;
    fails(
        i,
        "taint nodes nas room=cellar:NoSchedule",
        &["already has room taint(s) with same effect(s) and --overwrite is false"],
    )?;
    exactly(i, "get node nas -o jsonpath={.spec.taints[0].value}", "attic")?;
    exactly(i, "taint nodes nas room-", "node/nas untainted\n")?;
    fails(i, "taint nodes nas room=x:Sometimes", &["NoSchedule"])?;
    // An editor.
    let edit = |script: &str| -> Result<Ran> {
        let mut command = instance.hearth(["edit", "cm/a", "-n", "alice"]);
        command.env("KUBE_EDITOR", script);
        let done = command::output(&mut command, b"", command::LIMIT)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ran { out: text(&done.stdout), err: text(&done.stderr), code: done.status.code().unwrap_or(-1) })
    };
    let ran = edit("sed -i s/y:.*/y:\\ three/")?;
    ensure!(ran.out == "configmap/a edited\n", "{ran:?}");
    exactly(i, "get cm a -n alice -o jsonpath={.data.y}", "three")?;
    ensure!(edit("true")?.out == "Edit cancelled, no changes made.\n");
    ensure!(edit("false")?.code != 0);
    // Somebody else changes it meanwhile.
    let hearth = hearth_e2e::instance::binary();
    let ran = edit(&format!("{} label cm a -n alice meanwhile=yes && sed -i s/y:.*/y:\\ four/", hearth.display()))?;
    ensure!(ran.code != 0 && ran.err.contains("Conflict") && ran.err.contains("is kept in"), "{ran:?}");
    let kept = ran.err.trim().rsplit(' ').next().unwrap_or_default().to_owned();
    ensure!(fs::read_to_string(&kept)?.contains("four"));
    fs::remove_file(kept)?;
    Ok(())
}

#[test]
fn changes_are_watched_and_waited_for_across_a_restart_of_the_server() -> Result<()> {
    let instance = Instance::up("none")?;
    let i = &instance;
    let mut wanted = Vec::new();
    for form in ["", "-o name", "-o yaml", "-o json", "-o jsonpath={.metadata.name}:{.data.x};"] {
        wanted.push(Following::start(i, &format!("get cm -n alice -w {form}"))?);
    }
    let [table, names, yaml, json, path] = wanted.as_slice() else { unreachable!() };
    instance.apply(&config("a", "x: '1'"))?;
    // The headings come with the first row.
    table.prints(i, "a row", |text| text.starts_with("NAME") && text.contains("\na "))?;
    names.prints(i, "a name", |text| text == "configmap/a\n")?;
    for form in [yaml, json, path] {
        form.prints(i, "an object", |text| text.contains("a:1;") || text.contains("ConfigMap"))?;
    }
    instance.apply(&config("a", "x: '2', y: '2'"))?;
    names.prints(i, "two names", |text| text == "configmap/a\nconfigmap/a\n")?;
    yaml.prints(i, "two documents", |text| {
        text.matches("kind: ConfigMap").count() == 2 && text.matches("\n---\n").count() == 1
    })?;
    json.prints(i, "two objects", |text| {
        text.matches("\"kind\": \"ConfigMap\"").count() == 2 && !text.contains("List")
    })?;
    path.prints(i, "two values", |text| text == "a:1;a:2;")?;
    // By name: from the list's revision, and only that object; two names are both watched.
    instance.apply(&config("b", "x: '1'"))?;
    let two = Following::start(i, "get cm a b -n alice -w -o jsonpath={.metadata.name}{.data.x};")?;
    two.prints(i, "what is there", |text| text == "a2;b1;")?;
    let only = Following::start(i, "get cm -n alice --watch-only -o name")?;
    let events = Following::start(i, "events -n alice -w -o json")?;
    let missing = fails(i, "get cm x -n alice -w", &["configmaps \"x\" not found"])?;
    ensure!(missing.out.is_empty());
    // Waits that last over the restart.
    let mut field = Following::start(i, "wait cm/a -n alice --for=jsonpath={.data.x}=9 --timeout=60s")?;
    let mut gone = Following::start(i, "wait cm/b -n alice --for=delete --timeout=-1s")?;
    let mut comes = Following::start(i, "wait cm/late -n alice --for=create --timeout=60s")?;
    let server = instance.pids(" server ");
    instance.kill9(*server.first().context("a server")?)?;
    instance.eventually("the server is back", || instance.run("get ns"))?;
    instance.apply(&(config("c", "x: '1'") + &config("a", "x: '9'") + &config("late", "")))?;
    two.prints(i, "the change, and not that of another", |text| text.ends_with("a9;") && !text.contains("c1"))?;
    prints(i, "delete cm b -n alice", &[])?;
    two.prints(i, "the deletion", |text| text.ends_with("a9;b1;"))?;
    table.prints(i, "all of it in the table", |text| text.contains("\nc ") && text.matches("NAME").count() == 1)?;
    only.prints(i, "what came later", |text| text.contains("configmap/c\n"))?;
    ensure!(field.ends(i)? == 0 && field.printed() == "configmap/a condition met\n", "{}", field.printed());
    ensure!(gone.ends(i)? == 0 && gone.printed() == "configmap/b deleted\n", "{}", gone.printed());
    ensure!(comes.ends(i)? == 0 && comes.printed() == "configmap/late condition met\n", "{}", comes.printed());
    // Events, as they happen.
    instance.apply(&pod("big", "{name: a, image: busybox, resources: {requests: {memory: 9000Gi}}}"))?;
    events.prints(i, "an event as an object", |text| {
        text.contains("\"reason\": \"FailedScheduling\"") && !text.contains("List")
    })?;
    prints(i, "events -n alice", &["LAST SEEN", "FailedScheduling", "pod/big"])?;
    prints(i, "events -n alice --for pod/big -o name", &["event/"])?;
    ensure!(run(i, "events -n alice --for cm/a")?.err == "No events found in alice namespace.\n");
    // Conditions.
    exactly(i, "wait pod/big -n alice --for=condition=PodScheduled=False --timeout=30s", "pod/big condition met\n")?;
    fails(
        i,
        "wait pod/big -n alice --for=condition=Ready --timeout=0",
        &["timed out waiting for the condition on pods/big", "PodScheduled is False"],
    )?;
    fails(
        i,
        "wait pod/big -n alice --for=delete --timeout=100ms",
        &["timed out waiting for the condition on pods/big"],
    )?;
    fails(i, "wait pod/x -n alice --for=condition=Ready", &["Error from server (NotFound): pods \"x\" not found"])?;
    fails(i, "wait pod/x -n alice --for=jsonpath={.status.phase}=Running --timeout=0", &["pods \"x\" not found"])?;
    exactly(i, "wait pod/x -n alice --for=delete", "pod/x deleted\n")?;
    fails(i, "wait pod -l app=nobody -n alice --for=condition=Ready", &["no matching resources found"])?;
    fails(i, "wait pod/big -n alice --for=Ready", &["condition=TYPE"])?;
    fails(i, "wait pod -n alice --for=delete", &["say which pods"])?;
    // No server in reach.
    instance.down()?;
    let parts =
        ["Warning: ", "cannot reach", "timed out waiting for the condition on pods/x: the region did not answer"];
    fails(i, "wait pod/x -n alice --for=condition=Ready --timeout=500ms", &parts)?;
    fails(i, "get pods", &["error: ", "cannot reach"])
        .or_else(|_| fails(i, "get pods", &["Error from server (ServiceUnavailable)", "cannot reach"]))?;
    Ok(())
}

#[test]
fn pods_are_looked_into() -> Result<()> {
    let instance = Instance::up("none")?;
    let i = &instance;
    instance.import_busybox()?;
    let lines = |name: &str| {
        format!(
            "{{name: {name}, image: busybox, args: [sh, -c, 'for n in 1 2 3; do echo {name} $n; done; sleep 100000']}}"
        )
    };
    let mut manifest = pod("two", &format!("{}, {}", lines("a"), lines("b"))) + &pod("one", &lines("main"));
    manifest += &pod("crash", "{name: main, image: busybox, args: [sh, -c, 'echo attempt; exit 3']}");
    manifest += "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: alice}, spec: {replicas: 1, selector: {matchLabels: {app: web}}, \
                 template: {metadata: {labels: {app: web}}, spec: {terminationGracePeriodSeconds: 1, containers: [";
    instance.apply(&format!("{manifest}{SLEEPER}]}}}}}}}}"))?;
    prints(
        i,
        "wait pod/one pod/two -n alice --for=condition=Ready --timeout=60s",
        &["pod/one condition met", "pod/two condition met"],
    )?;
    prints(i, "rollout status deployment/web -n alice --timeout=60s", &["deployment \"web\" successfully rolled out"])?;
    // Logs.
    let all = "main 1\nmain 2\nmain 3\n";
    instance.eventually("everything is printed", || exactly(i, "logs one -n alice", all))?;
    exactly(i, "logs pod/one -n alice --tail=-1", all)?;
    exactly(i, "logs one -n alice --tail 1", "main 3\n")?;
    exactly(i, "logs one -n alice --since=1h30m", all)?;
    exactly(i, "logs one -n alice --since-time=2001-01-01T00:00:00Z", all)?;
    exactly(i, "logs one -n alice --since-time=2999-01-01T00:00:00Z", "")?;
    let stamped = prints(i, "logs one -n alice --timestamps --tail=1", &[" main 3\n"])?;
    ensure!(stamped.starts_with("20") && stamped.contains('T'), "{stamped}");
    let ran = run(i, "logs two -n alice")?;
    ensure!(ran.out == "a 1\na 2\na 3\n" && ran.err == "Defaulted container \"a\" out of: a, b\n", "{ran:?}");
    exactly(i, "logs two -n alice -c b --tail=1", "b 3\n")?;
    exactly(i, "logs two b -n alice --tail=1", "b 3\n")?;
    exactly(i, "logs two -n alice --all-containers --prefix --tail=1", "[pod/two/a] a 3\n[pod/two/b] b 3\n")?;
    exactly(i, "logs -l app=one -n alice --tail=2", "main 2\nmain 3\n")?;
    fails(i, "logs two -n alice -c x", &["container x is not valid for pod two", "a, b"])?;
    fails(i, "logs x -n alice", &["Error from server (NotFound): pods \"x\" not found"])?;
    fails(i, "logs one -n alice --previous", &["previous terminated container \"main\" in pod \"one\" not found"])?;
    fails(i, "logs cm/x -n alice", &["has no pods"])?;
    fails(i, "logs one -n alice --since-time=yesterday", &["RFC 3339"])?;
    let follow = Following::start(i, "logs -f two -n alice --all-containers --prefix")?;
    follow.prints(i, "both logs", |text| text.contains("[pod/two/a] a 3\n") && text.contains("[pod/two/b] b 3\n"))?;
    instance.eventually("it has crashed twice", || exactly(i, "logs crash -n alice --previous", "attempt\n"))?;
    // Exec.
    exactly(i, "exec one -n alice -- sh -c 'echo hello'", "hello\n")?;
    let ran = run(i, "exec two -n alice -- sh -c 'echo out; echo err >&2; exit 42'")?;
    ensure!(ran.code == 42 && ran.out == "out\n", "{ran:?}");
    ensure!(ran.err == "Defaulted container \"a\" out of: a, b\nerr\n", "{ran:?}");
    ensure!(run_with(i, "exec -i one -n alice -- sh -c cat", "typed")?.out == "typed");
    exactly(i, "exec deployment/web -n alice -- sh -c 'echo there'", "there\n")?;
    fails(i, "exec one -n alice -- /no/such/program", &["/no/such/program"])?;
    fails(i, "exec one -n alice", &["required"])?;
    let hearth = hearth_e2e::instance::binary();
    let mut terminal = instance.program("script");
    terminal.env("HEARTH_CONFIG", instance.path().join("client.yaml"));
    terminal.args([
        "-qec",
        &format!("stty rows 33 cols 99; {} exec -it one -n alice -- sh -c 'tty; stty size'", hearth.display()),
        "/dev/null",
    ]);
    let text = command::succeed(&mut terminal)?;
    ensure!(text.contains("/dev/") && text.contains("33 99"), "{text}");
    // Describe.
    instance.eventually("it backs off", || {
        prints(
            i,
            "describe pod crash -n alice",
            &["Waiting", "CrashLoopBackOff", "Last State:     Terminated", "Exit Code:      3", "Node:           nas"],
        )
    })?;
    prints(i, "describe pod o -n alice", &["Name:           one", "Events:"])?;
    prints(
        i,
        "describe deployment web -n alice",
        &["1 desired | 1 updated | 1 total | 1 available | 0 unavailable", "Pod Template:", "web-"],
    )?;
    for kind in ["ns", "nodes", "devices", "rs", "events", "secrets", "cm", "pvc", "routes", "installs", "apps"] {
        let ran = run(i, &format!("describe {kind} -n alice"))?;
        ensure!(
            ran.code == 0 && (ran.out.contains("Name:") || ran.err.contains("No resources found")),
            "{kind}: {ran:?}"
        );
    }
    prints(i, "describe node nas", &["Conditions:", "Ready", "Pods:", "two"])?;
    fails(i, "describe pod x -n alice", &["pods \"x\" not found"])?;
    // Scale, roll out, delete.
    exactly(i, "scale deployment/web -n alice --replicas=2", "deployment.apps/web scaled\n")?;
    fails(i, "scale deployment/web -n alice --replicas=3 --current-replicas=7", &["Expected replicas to be 7, was 2"])?;
    fails(i, "scale pod/one -n alice --replicas=3", &["pods cannot be scaled"])?;
    prints(i, "rollout status deployment/web -n alice --timeout=60s", &["successfully rolled out"])?;
    fails(i, "rollout status deployment/x -n alice", &["deployments.apps \"x\" not found"])?;
    exactly(i, "get deployment web -n alice -o jsonpath={.status.readyReplicas}", "2")?;
    let ran = run(i, "delete pod one -n alice --force")?;
    ensure!(
        ran.code == 0 && ran.out == "pod \"one\" force deleted\n" && ran.err.starts_with("Warning: Immediate deletion"),
        "{ran:?}"
    );
    exactly(i, "delete pod two -n alice --now", "pod \"two\" deleted\n")?;
    fails(i, "get pod two -n alice", &["NotFound"])?;
    exactly(i, "delete pod crash -n alice --wait=false", "pod \"crash\" deleted\n")?;
    // What is applied over an object that is being deleted goes with it, which is told.
    let held =
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: held, namespace: alice, finalizers: [example.com/hold]}}";
    instance.apply(held)?;
    exactly(i, "delete cm held -n alice --wait=false", "configmap \"held\" deleted\n")?;
    let ran = run_with(i, "apply -f -", &config("held", "x: '1'"))?;
    ensure!(
        ran.err.contains("Warning: Detected changes to resource configmaps/held which is currently being deleted"),
        "{ran:?}"
    );
    Ok(())
}
