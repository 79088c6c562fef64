//! `stats`, and what `-o metrics=` serves: the numbers of a mount. The one place where metrics are named.

use super::Vfs;
use crate::model::metrics::Exposition;

impl Vfs {
    /// All numbers of this mount in Prometheus' text format.
    pub async fn stats(&self) -> String {
        let mut text = Exposition::default();
        self.mount_stats(&mut text);
        self.store_stats(&mut text).await;
        self.tree_stats(&mut text);
        self.operation_stats(&mut text);
        text.text()
    }

    fn mount_stats(&self, text: &mut Exposition) {
        let settings = self.settings();
        let (name, version) = ("datamon_mount_info", env!("CARGO_PKG_VERSION"));
        text.begin(name, "gauge", "What is mounted.");
        let labels = [("context", &settings.context[..]), ("source", &settings.source), ("version", version)];
        text.value(name, &labels, 1);
        let since = self.mounted().secs;
        text.single("datamon_mount_start_time_seconds", "gauge", "When it was mounted, in Unix time.", since);
    }

    async fn store_stats(&self, text: &mut Exposition) {
        let requests = &self.store().requests;
        let name = "datamon_store_requests_total";
        text.begin(name, "counter", "Attempts of requests to the store, by verb, role and outcome.");
        for (request, role, outcome, count) in requests.meter.counts() {
            text.value(name, &[("verb", request.name()), ("role", role.name()), ("outcome", outcome.name())], count);
        }
        let name = "datamon_store_request_seconds";
        text.begin(name, "histogram", "How long attempts of requests to the store took.");
        for (request, took) in requests.meter.took() {
            text.histogram(name, &[("verb", request.name())], took);
        }
        let running = ["out", "in"].into_iter().zip(self.store().running());
        let name = "datamon_store_requests_running";
        text.begin(name, "gauge", "Requests on their way, by direction.");
        running.clone().for_each(|(direction, (now, _))| text.value(name, &[("direction", direction)], now));
        let name = "datamon_store_requests_running_max";
        text.begin(name, "gauge", "The most that were on their way at once.");
        running.for_each(|(direction, (_, most))| text.value(name, &[("direction", direction)], most));
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        let retries = count(&requests.retries);
        text.single("datamon_store_retries_total", "counter", "Attempts that repeated another.", retries);
        let name = "datamon_store_bytes_total";
        text.begin(name, "counter", "Bytes of objects, by direction.");
        text.value(name, &[("direction", "in")], count(&requests.bytes_in));
        text.value(name, &[("direction", "out")], count(&requests.bytes_out));
        let cache = self.reader().cache_state().await;
        let name = "datamon_cache_bytes";
        text.begin(name, "gauge", "Bytes that the caches in memory hold.");
        text.value(name, &[("cache", "content")], cache.bytes);
        text.value(name, &[("cache", "tables")], self.ranges().bytes().await);
        let name = "datamon_cache_reads_total";
        text.begin(name, "counter", "Chunks of content that were asked for, by whether they were in memory.");
        text.value(name, &[("outcome", "hit")], cache.hits);
        text.value(name, &[("outcome", "miss")], cache.misses);
    }

    fn tree_stats(&self, text: &mut Exposition) {
        let trees = self.open_trees();
        let staged: Vec<_> = trees.iter().map(|(repo, open)| (repo.name.as_str(), open.tree().staged())).collect();
        type Part = fn(&crate::staging::tree::Staged) -> u64;
        let parts: [(&str, &str, Part); 3] = [
            ("datamon_staged_files", "Files with staged bytes.", |staged| staged.files),
            ("datamon_staged_bytes", "Bytes that are staged.", |staged| staged.bytes),
            ("datamon_staged_uploaded_bytes", "Staged bytes that are in the store already.", |staged| staged.uploaded),
        ];
        for (name, help, part) in parts {
            text.begin(name, "gauge", help);
            staged.iter().for_each(|(repo, staged)| text.value(name, &[("repo", repo)], part(staged)));
        }
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        let commits = &self.control.commits;
        let name = "datamon_commits_total";
        text.begin(name, "counter", "Commits, by outcome.");
        for (outcome, counter) in
            [("made", &commits.made), ("unchanged", &commits.unchanged), ("failed", &commits.failed)]
        {
            text.value(name, &[("outcome", outcome)], count(counter));
        }
        let name = "datamon_commit_seconds";
        text.begin(name, "histogram", "How long commits took.");
        text.histogram(name, &[], &commits.took);
    }

    fn operation_stats(&self, text: &mut Exposition) {
        let name = "datamon_operation_seconds";
        text.begin(name, "histogram", "How long the kernel waited for answers, by operation.");
        for (operation, took, _) in self.operations.all() {
            text.histogram(name, &[("operation", operation.name())], took);
        }
        let name = "datamon_operations_refused_total";
        text.begin(name, "counter", "Operations that were answered with an errno.");
        for (operation, _, refused) in self.operations.all().filter(|(.., refused)| *refused > 0) {
            text.value(name, &[("operation", operation.name())], refused);
        }
    }
}
