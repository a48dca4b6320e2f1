"""The files of tests that take long."""

# More than three seconds of processor time, the longest first. By itself xdist begins with those that have most tests,
# and ends with one worker in a long file while the others wait.
LONG = tuple(
    f"test_{name}.py"
    for name in (
        *("preflight", "readme", "training_server", "preflight_mutations", "formats", "preflight_gallery", "publish"),
        *("instruction_sets", "training", "architectures", "resume", "backends", "hub_server", "kernel_threads"),
        *("hostile", "structure", "kernel_targets", "cog_server", "fuzz_training", "native", "weight_memory"),
        *("packaging", "compile", "output_folder", "report", "chat", "terminals", "story", "data_files"),
        *("stream_decoder", "inference", "training_options", "cli", "distributed", "long_runs", "chat_settings"),
    )
)
