//! Faults that are planted on purpose, one by one and in pairs, to prove that the simulator finds them. Without the feature
//! `mutants`, which only the crate `sim` asks for, none exists and each question is answered at compile time.

macro_rules! mutants {
    ($($(#[$doc:meta])* $mutant:ident = $name:literal,)*) => {
        /// A planted fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Mutant {
            $($(#[$doc])* $mutant,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Mutant] = &[$(Mutant::$mutant,)*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Mutant::$mutant => $name,)*
                }
            }
        }
    };
}

mutants! {
    /// The planner switches to instances that only run.
    SwitchUnvalidated = "switch-unvalidated",
    /// The lint finds nothing.
    NoLint = "no-lint",
    /// The planner destroys before the edge acknowledged.
    RetireBeforeAck = "retire-before-ack",
    /// The planner leaves alone what no row owns.
    NoGc = "no-gc",
    /// Control loads desired state before it observes.
    StaleSnapshot = "stale-snapshot",
    /// Control begins effects before their rows are durable.
    CreateBeforeRecord = "create-before-record",
    /// The planner believes results of effects that another row stands for by now.
    OldResults = "old-results",
    /// The planner writes `gone` when the provider does not list an instance that is to end.
    GoneUnseen = "gone-unseen",
    /// The planner ends instances with requests in flight.
    NoDrain = "no-drain",
    /// Rollouts have no deadline.
    NoDeadline = "no-deadline",
    /// A provider that cannot be asked is one without instances.
    BlindIsEmpty = "blind-is-empty",
    /// The planner does not look which table the edge has.
    EdgeForgotten = "edge-forgotten",
    /// A newer deploy leaves the older one going.
    NoSupersede = "no-supersede",
    /// A slot whose instance is not validated yet counts as empty.
    DoubleSlot = "double-slot",
    /// A table counts as acknowledged when its sending failed.
    AckOnError = "ack-on-error",
    /// What died is not replaced.
    NoHeal = "no-heal",
    /// The planner writes no ledger events.
    NoEvents = "no-events",
    /// An instance that failed its checks counts as validated.
    FailedIsPassed = "failed-is-passed",
    /// The switch is told to the edge, and one service is forgotten.
    HalfSwitch = "half-switch",
    /// A commit of an older epoch is taken.
    NoStoreFence = "no-store-fence",
    /// A commit on an older revision is taken.
    NoConflict = "no-conflict",
    /// Control forgets what it has under way.
    ForgetRunning = "forget-running",
    /// The provider takes effects of older servers.
    NoProviderFence = "no-provider-fence",
    /// The provider starts what was destroyed.
    NoTombstone = "no-tombstone",
    /// The edge takes any generation.
    NoGeneration = "no-generation",
    /// The edge acknowledges before it uses a table.
    EarlyAck = "early-ack",
    /// What no row owns is ended although the edge sends to it.
    EndInUse = "end-in-use",
    /// State that is older than the world is carried out.
    NoRecoveryHold = "no-recovery-hold",
    /// A recovery gives the numbers of what runs again.
    NumbersAgain = "numbers-again",
}

#[cfg(feature = "mutants")]
thread_local! {
    static PLANTED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Whether the fault is planted, in this thread.
#[cfg(feature = "mutants")]
#[inline]
pub fn planted(mutant: Mutant) -> bool {
    PLANTED.get() & (1 << mutant as u32) != 0
}

/// Whether the fault is planted.
#[cfg(not(feature = "mutants"))]
#[inline]
pub const fn planted(_: Mutant) -> bool {
    false
}

/// Plants these faults in this thread, and no others.
#[cfg(feature = "mutants")]
pub fn plant(mutants: &[Mutant]) {
    PLANTED.set(mutants.iter().fold(0, |bits, mutant| bits | 1 << *mutant as u32));
}
