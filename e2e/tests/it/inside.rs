//! What reaches into a pod that runs and what it leaves behind: last messages, forwarded ports, attached terminals, usage.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    process::{ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command::{self, Running},
    instance::Instance,
};
use serde_json::Value;

/// No answer over a forwarded port takes longer.
const ANSWER: Duration = Duration::from_secs(30);

fn instance() -> Result<Instance> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    Ok(instance)
}

fn apply(instance: &Instance, name: &str, spec: &str) -> Result<()> {
    let head = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: alice}}\nspec:\n");
    instance.apply(&format!("{head}  terminationGracePeriodSeconds: 0\n{spec}")).map(drop)
}

fn running(instance: &Instance, pod: &str) -> Result<()> {
    instance.run(&format!("wait pod/{pod} -n alice --for condition=Ready --timeout 60s")).map(drop)
}

fn containers(instance: &Instance, pod: &str) -> Result<Vec<Value>> {
    let status = instance.get("pod", pod, "alice")?["status"].clone();
    Ok(status["containerStatuses"].as_array().cloned().unwrap_or_default())
}

#[test]
fn a_container_says_why_it_ended_and_its_agent_need_not_be_there() -> Result<()> {
    let instance = instance()?;
    apply(
        &instance,
        "last",
        "  restartPolicy: Never\n  containers:\n  \
         - {name: file, image: busybox, args: [sh, -c, 'echo noise; echo -n \"no disk\" > /dev/termination-log; exit 3']}\n  \
         - {name: log, image: busybox, terminationMessagePolicy: FallbackToLogsOnError, args: [sh, -c, 'for i in $(seq 200); do echo line $i; done; exit 4']}\n  \
         - {name: own, image: busybox, terminationMessagePath: /tmp/last, securityContext: {runAsUser: 1000}, args: [sh, -c, 'echo done > /tmp/last']}\n  \
         - {name: much, image: busybox, args: [sh, -c, 'head -c 50000000 /dev/zero > /dev/termination-log; exit 1']}\n",
    )?;
    let message = |of: &Value| of["state"]["terminated"]["message"].as_str().unwrap_or_default().to_owned();
    let all = instance.eventually("all have ended", || {
        let all = containers(&instance, "last")?;
        ensure!(all.len() == 4 && all.iter().all(|one| one["state"]["terminated"].is_object()), "{all:?}");
        Ok(all)
    })?;
    ensure!(message(&all[0]) == "no disk", "{all:?}");
    let log = message(&all[1]);
    ensure!(log.starts_with("line 121\n") && log.ends_with("line 200\n"), "its last 80 lines: {log:?}");
    ensure!(message(&all[2]) == "done\n", "{all:?}");
    // Its share of what a status may hold.
    ensure!(message(&all[3]).len() <= 12 * 1024 / 4, "{} bytes", message(&all[3]).len());
    let page = instance.run("describe pod last -n alice")?;
    ensure!(page.lines().any(|line| line.split_whitespace().eq(["Message:", "no", "disk"])), "{page}");
    ensure!(!page.contains("line 121\nline 122"), "no container writes lines of its own into a page");

    // What it said while no agent looked is read by the next one.
    apply(
        &instance,
        "alone",
        "  restartPolicy: Never\n  containers:\n  - {name: app, image: busybox, args: [sh, -c, \
         'while [ -d /proc/self ] && [ ! -f /go ]; do sleep 0.05; done; echo -n alone > /dev/termination-log; exit 5']}\n",
    )?;
    running(&instance, "alone")?;
    let agent = *instance.pids(" agent ").first().context("an agent")?;
    command::succeed(&mut instance.hearth([
        "exec",
        "alone",
        "-n",
        "alice",
        "--",
        "sh",
        "-c",
        "(sleep 0.3; touch /go) >/dev/null 2>&1 &",
    ]))?;
    instance.kill9(agent)?;
    instance.eventually("the next agent tells", || {
        let one = containers(&instance, "alone")?.remove(0);
        ensure!(one["state"]["terminated"]["exitCode"] == 5 && message(&one) == "alone", "{one}");
        Ok(())
    })
}

/// A `port-forward` and the local port of each remote one, in the order they were asked for.
fn forward(instance: &Instance, arguments: &[&str]) -> Result<(Running, Vec<u16>, BufReader<ChildStdout>)> {
    let mut command = instance.hearth(["port-forward", "-n", "alice", "--address", "127.0.0.1"]);
    command.args(arguments);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?);
    let child = Running(child);
    let mut ports = Vec::new();
    while ports.len() + 1 < arguments.len() {
        let mut line = String::new();
        ensure!(lines.read_line(&mut line)? > 0, "it ended");
        let port = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next());
        ports.push(port.and_then(|port| port.parse().ok()).with_context(|| line.clone())?);
    }
    Ok((child, ports, lines))
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(ANSWER))?;
    Ok(stream)
}

fn ensure_hello(page: &str) -> Result<()> {
    ensure!(page.ends_with("\r\n\r\nhello\n"), "{page}");
    Ok(())
}

#[test]
fn forwarded_ports_reach_what_listens_for_itself_alone() -> Result<()> {
    let instance = instance()?;
    // The first two cannot be reached by the pod's address.
    apply(
        &instance,
        "web",
        "  containers:\n  - name: app\n    image: busybox\n    ports: [{name: http, containerPort: 8080}]\n    args: [sh, -c, \
         'mkdir /www; echo hello > /www/index.html; httpd -p 127.0.0.1:8080 -h /www; httpd -p [::1]:8081 -h /www; nc -ll -p 9000 -e sh -c \"cat; \
         echo over\"']\n    readinessProbe: {periodSeconds: 1, exec: {command: [sh, -c, 'wget -qO- http://127.0.0.1:8080/ && wget -qO- \
         http://[::1]:8081/ && nc -w 1 127.0.0.1 9000 < /dev/null']}}\n",
    )?;
    running(&instance, "web")?;
    let (mut child, ports, mut lines) = forward(&instance, &["pod/web", ":http", ":8081", ":9000", ":7000"])?;
    let [http, http6, echo, nobody] = ports[..] else { anyhow::bail!("{ports:?}") };

    for port in [http, http6] {
        let mut page = connect(port)?;
        page.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        page.read_to_string(&mut text)?;
        ensure_hello(&text)?;
    }
    // As many at once as a load test opens.
    let burst: Vec<_> = (0..100)
        .map(|_| {
            std::thread::spawn(move || -> Result<()> {
                let mut page = connect(http)?;
                page.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
                let mut text = String::new();
                page.read_to_string(&mut text)?;
                ensure_hello(&text)
            })
        })
        .collect();
    for one in burst {
        one.join().expect("no panic")?;
    }
    let mut line = String::new();
    lines.read_line(&mut line)?;
    ensure!(line == format!("Handling connection for {http}\n"), "{line}");

    // Many at a time, each with much to say, and with an answer that comes only after it has said all.
    // One after the other until each is accepted, since busybox has one place for those who wait for that.
    let mut streams = Vec::new();
    for n in 0..20_u8 {
        let mut stream = connect(echo)?;
        stream.write_all(&[n])?;
        let mut first = [0; 1];
        stream.read_exact(&mut first)?;
        ensure!(first == [n]);
        streams.push((n, stream));
    }
    let many: Vec<_> = streams
        .into_iter()
        .map(|(n, mut stream)| {
            std::thread::spawn(move || -> Result<()> {
                let data = vec![n; 300_000];
                let mut back = stream.try_clone()?;
                let reading = std::thread::spawn(move || {
                    let mut all = Vec::new();
                    back.read_to_end(&mut all).map(|_| all)
                });
                stream.write_all(&data)?;
                stream.shutdown(Shutdown::Write)?;
                let all = reading.join().expect("no panic")?;
                ensure!(all.len() == data.len() + 5 && all.ends_with(b"over\n"), "{} bytes", all.len());
                ensure!(all[..data.len()] == data[..], "others' bytes");
                Ok(())
            })
        })
        .collect();
    for one in many {
        one.join().expect("no panic")?;
    }

    let mut stderr = BufReader::new(child.0.stderr.take().context("stderr")?);
    let mut closed = connect(nobody)?;
    ensure!(closed.read(&mut [0; 1]).map_or(true, |count| count == 0), "nothing listens there");
    let mut told = String::new();
    stderr.read_line(&mut told)?;
    let expected =
        format!("an error occurred forwarding {nobody} -> 7000: failed to connect to localhost:7000 inside the pod");
    ensure!(told.starts_with(&expected), "{told}");
    ensure!(child.0.try_wait()?.is_none(), "the other ports go on");

    let taken = instance.refused(&format!("port-forward web {http}:80 -n alice --address 127.0.0.1"))?;
    ensure!(taken.contains(&format!("unable to listen on port {http}")), "{taken}");
    let named = instance.refused("port-forward web :https -n alice")?;
    ensure!(named.contains("the pod has no port named \"https\""), "{named}");

    // With the pod goes what leads to it, at the next who comes.
    instance.run("delete pod web -n alice")?;
    let _ = connect(http)?.read(&mut [0; 1]);
    instance.eventually("it has ended", || {
        ensure!(child.0.try_wait()?.is_some_and(|status| !status.success()));
        Ok(())
    })
}

/// A process of an interactive verb behind a terminal of its own.
pub(crate) struct Session {
    child: Running,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Session {
    /// Through `script`, which gives it a terminal.
    pub(crate) fn begin(instance: &Instance, arguments: &str) -> Result<Self> {
        let binary = hearth_e2e::instance::binary();
        let mut command = Command::new("script");
        command.args(["-qec", &format!("{} {arguments}", binary.display()), "/dev/null"]);
        command.env("HEARTH_CONFIG", instance.path().join("client.yaml"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let (stdin, stdout) = (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
        Ok(Self { child: Running(child), stdin, stdout: BufReader::new(stdout) })
    }

    pub(crate) fn say(&mut self, text: &str) -> Result<()> {
        self.stdin.write_all(text.as_bytes())?;
        Ok(self.stdin.flush()?)
    }

    /// Reads lines until one has this text; a test has a bound of its own.
    pub(crate) fn until(&mut self, text: &str) -> Result<String> {
        loop {
            let mut line = String::new();
            ensure!(self.stdout.read_line(&mut line)? > 0, "it ended before {text:?}");
            if line.contains(text) {
                return Ok(line.trim_end().to_owned());
            }
        }
    }
}

#[test]
fn somebody_attaches_to_a_program_and_leaves_it_running() -> Result<()> {
    let instance = instance()?;
    apply(
        &instance,
        "talk",
        "  containers:\n  \
         - {name: tty, image: busybox, stdin: true, tty: true, args: [sh]}\n  \
         - {name: once, image: busybox, stdin: true, stdinOnce: true, args: [sh, -c, 'sort; echo over; sleep 1000']}\n  \
         - {name: mute, image: busybox, args: [sh, -c, 'while [ ! -f /go ]; do sleep 0.05; done; echo gone; exit 0']}\n",
    )?;
    running(&instance, "talk")?;
    let mut first = Session::begin(&instance, "attach talk -c tty -it -n alice")?;
    first.say("x=kept; echo size-$((6*7)) $TERM $(tty)\n")?;
    ensure!(first.until("size-42 ")?.ends_with("size-42 xterm /dev/pts/0"), "a terminal");
    drop(first);
    // The agent goes and comes back; the program does not notice.
    let agent = *instance.pids(" agent ").first().context("an agent")?;
    instance.kill9(agent)?;
    instance.eventually("another agent is there", || {
        ensure!(instance.pids(" agent ").first().is_some_and(|pid| *pid != agent));
        instance.run("exec talk -c tty -n alice -- /bin/busybox true")
    })?;
    let mut second = Session::begin(&instance, "attach talk -c tty -it -n alice")?;
    second.say("echo still-$x\n")?;
    second.until("still-kept")?;
    second.say("exit\n")?;
    instance.eventually("it ends with the program", || {
        ensure!(second.child.0.try_wait()?.is_some());
        Ok(())
    })?;

    // Piped input is at its end for a container that takes it once; the output of what follows still comes.
    let mut command = instance.hearth(["attach", "talk", "-c", "once", "-i", "-n", "alice"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("stdin")?.write_all(b"b\na\n")?;
    let stdout = BufReader::new(child.stdout.take().context("stdout")?);
    let _child = Running(child);
    let lines: Vec<String> = stdout.lines().take(3).collect::<std::io::Result<_>>()?;
    ensure!(lines == ["a", "b", "over"], "{lines:?}");
    let over =
        command::output(&mut instance.hearth(["attach", "talk", "-c", "once", "-i", "-n", "alice"]), b"", ANSWER)?;
    let over = String::from_utf8_lossy(&over.stderr).into_owned();
    ensure!(over.contains("has no input, or it is over"), "{over}");

    // Without input of its own it is listened to until it ends.
    let mute = instance.hearth(["attach", "talk", "-c", "mute", "-i", "-n", "alice"]);
    let listening = std::thread::spawn(move || {
        let mut mute = mute;
        command::output(&mut mute, b"", command::LIMIT)
    });
    command::succeed(&mut instance.hearth([
        "exec",
        "talk",
        "-c",
        "mute",
        "-n",
        "alice",
        "--",
        "sh",
        "-c",
        "sleep 1; touch /go",
    ]))?;
    let heard = listening.join().expect("no panic")?;
    let (out, err) = (String::from_utf8_lossy(&heard.stdout), String::from_utf8_lossy(&heard.stderr));
    ensure!(heard.status.success() && out == "gone\n", "{out} {err}");
    ensure!(err.contains("Unable to use an input - container mute did not allocate one"), "{err}");
    Ok(())
}

#[test]
fn top_tells_what_containers_and_devices_use_now() -> Result<()> {
    let instance = instance()?;
    apply(
        &instance,
        "used",
        "  containers:\n  \
         - {name: busy, image: busybox, args: [sh, -c, 'while :; do :; done']}\n  \
         - {name: big, image: busybox, args: [sh, -c, 'head -c 40000000 /dev/zero > /dev/shm/x; sleep 1000']}\n",
    )?;
    running(&instance, "used")?;
    let number = |cell: &str, unit: &str| cell.strip_suffix(unit).and_then(|number| number.parse::<u64>().ok());
    let lines = |line: &str| -> Result<Vec<Vec<String>>> {
        let text = instance.run(line)?;
        Ok(text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect())
    };
    instance.eventually("what each uses shows", || {
        let rows = lines("top pod used -n alice --containers")?;
        ensure!(rows[0] == ["POD", "NAME", "CPU(cores)", "MEMORY(bytes)"], "{rows:?}");
        let of = |name: &str| rows.iter().find(|row| row[1] == name).cloned().context("a row");
        let (busy, big) = (of("busy")?, of("big")?);
        ensure!(number(&busy[2], "m") > Some(50) && number(&busy[3], "Mi") < Some(20), "{rows:?}");
        ensure!(number(&big[2], "m") < Some(50) && number(&big[3], "Mi") >= Some(38), "{rows:?}");
        Ok(())
    })?;
    let rows = lines("top pods -A")?;
    ensure!(rows[0] == ["NAMESPACE", "NAME", "CPU(cores)", "MEMORY(bytes)"] && rows.len() == 2, "{rows:?}");
    ensure!(rows[1][..2] == ["alice", "used"] && number(&rows[1][3], "Mi") >= Some(38), "{rows:?}");
    for verb in ["top node", "top device nas"] {
        let rows = lines(verb)?;
        ensure!(rows[0] == ["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"], "{rows:?}");
        ensure!(rows[1][0] == "nas" && number(&rows[1][1], "m") > Some(50) && number(&rows[1][3], "Mi") > Some(0));
        ensure!(number(&rows[1][4], "%").is_some_and(|share| share <= 100), "{rows:?}");
    }
    ensure!(instance.refused("top pod nothing -n alice")?.contains("not found"));
    let metrics = instance.scrape("deviceMetrics")?;
    let value = |name: &str| metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    ensure!(value("hearth_agent_pods_cpu_seconds_total").is_some_and(|seconds| seconds > 0.05), "{metrics}");
    ensure!(value("hearth_agent_pods_memory_working_set_bytes").is_some_and(|bytes| bytes > 38e6), "{metrics}");
    Ok(())
}

#[test]
fn containers_that_share_their_processes_restart_alone_and_outlive_the_agent() -> Result<()> {
    let instance = instance()?;
    apply(
        &instance,
        "shared",
        "  shareProcessNamespace: true\n  containers:\n  \
         - {name: app, image: busybox, args: [sh, -c, 'setsid sleep 4321 & exec sleep 1234']}\n  \
         - {name: look, image: busybox, args: [sh, -c, 'while :; do sleep 0.1; done']}\n",
    )?;
    running(&instance, "shared")?;
    let look = |script: &str| {
        command::succeed(
            &mut instance.hearth(["exec", "shared", "-c", "look", "-n", "alice", "--", "sh", "-c", script]),
        )
    };
    ensure!(look("cat /proc/1/comm")? == "pause\n");
    let seen = look("ps")?;
    ensure!(seen.contains("sleep 1234") && seen.contains("sleep 4321"), "{seen}");
    let agent = *instance.pids(" agent ").first().context("an agent")?;
    instance.kill9(agent)?;
    instance.eventually("another agent is there", || {
        ensure!(instance.pids(" agent ").first().is_some_and(|pid| *pid != agent));
        look("true")
    })?;
    // By one container, of the other; what that left in a session of its own goes with it.
    look("kill -9 $(pidof sleep | tr ' ' '\\n' | while read p; do grep -q 1234 /proc/$p/cmdline && echo $p; done)")?;
    let restarts = |name: &str| -> Result<u64> {
        let all = containers(&instance, "shared")?;
        all.iter().find(|one| one["name"] == name).and_then(|one| one["restartCount"].as_u64()).context("a count")
    };
    instance.eventually("the one that was killed runs again", || {
        ensure!(restarts("app")? == 1);
        let seen = look("ps")?;
        ensure!(seen.contains("sleep 1234") && seen.matches(" sleep 4321").count() == 1, "{seen}");
        Ok(())
    })?;
    ensure!(restarts("look")? == 0, "the other is left alone");
    let uid = instance.get("pod", "shared", "alice")?["metadata"]["uid"].as_str().context("a uid")?.to_owned();
    instance.run("delete pod shared -n alice")?;
    instance.eventually("nothing of it is left", || {
        let of_pod =
            |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(&uid));
        let pids = std::fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let left: Vec<u32> = pids.filter(of_pod).collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}
