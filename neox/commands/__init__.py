"""One module per subcommand of `neox`; heavy libraries are imported when a command runs, not before."""
