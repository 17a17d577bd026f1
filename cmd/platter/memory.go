package main

import "runtime/debug"

// limitMemory keeps the process below budget bytes. The heap has three eighths of it:
// segments being filled lie outside the heap, and take about as much. The
// collector begins early, since most of what it finds is garbage.
func limitMemory(budget int64) {
	debug.SetMemoryLimit(budget * 3 / 8)
	debug.SetGCPercent(50)
}
