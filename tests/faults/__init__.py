"""What other people's machines do to a run: kills, full disks, flipped bits, clocks set back. Small by default, in full
with -m faults; counts are printed with -s."""
