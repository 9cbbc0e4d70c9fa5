//! Cluster files.

/// A cluster file in the making; by default one master, two workers and three parameter servers.
#[derive(Clone, Debug)]
pub struct Cluster {
    workers: u32,
    servers: u32,
    placement: Option<&'static str>,
    coati: String,
    training_input: String,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            workers: 2,
            servers: 3,
            placement: None,
            coati: String::new(),
            training_input: String::new(),
        }
    }
}

impl Cluster {
    /// One master, two workers and three parameter servers.
    pub fn new() -> Self {
        Self::default()
    }

    /// `workerCount`
    #[must_use]
    pub fn workers(mut self, count: u32) -> Self {
        self.workers = count;
        self
    }

    /// `parameterServerCount`
    #[must_use]
    pub fn servers(mut self, count: u32) -> Self {
        self.servers = count;
        self
    }

    /// `evaluatorCount: 1`
    #[must_use]
    pub fn evaluator(self) -> Self {
        self.training_input("evaluatorType: standard")
            .training_input("evaluatorCount: 1")
    }

    /// `coati.placement`
    #[must_use]
    pub fn placement(mut self, placement: &'static str) -> Self {
        self.placement = Some(placement);
        self
    }

    /// A further line of `coati`: `restart: {max: 0}`.
    #[must_use]
    pub fn coati(mut self, line: &str) -> Self {
        self.coati = [&self.coati, "  ", line, "\n"].concat();
        self
    }

    /// A further line of `trainingInput`.
    #[must_use]
    pub fn training_input(mut self, line: &str) -> Self {
        self.training_input = [&self.training_input, "  ", line, "\n"].concat();
        self
    }

    /// The file's text.
    pub fn yaml(&self) -> String {
        let Self {
            workers,
            servers,
            placement,
            coati,
            training_input,
        } = self;
        let placement = placement.map_or(String::new(), |placement| format!("  placement: {placement}\n"));
        let coati = match placement + coati {
            none if none.is_empty() => none,
            lines => format!("coati:\n{lines}"),
        };
        format!(
            "trainingInput:\n  scaleTier: CUSTOM\n  masterType: standard\n  workerCount: {workers}\n  workerType: standard\n  \
             parameterServerCount: {servers}\n  parameterServerType: standard\n{training_input}{coati}"
        )
    }
}
