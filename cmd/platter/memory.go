package main

import "runtime/debug"

// limitMemory keeps the process below budget bytes. The heap has half of it:
// segments being filled lie outside the heap, and take the other half. The
// collector begins early, since most of what it finds is garbage.
func limitMemory(budget int64) {
	debug.SetMemoryLimit(budget / 2)
	debug.SetGCPercent(50)
}
