package main

import "runtime/debug"

// limitMemory keeps the process below budget bytes: the garbage collector
// works harder as the heap nears its part of it. What jobs keep outside the
// heap, and the program itself, have the rest.
func limitMemory(budget int64) {
	debug.SetMemoryLimit(budget * 3 / 4)
	debug.SetGCPercent(50)
}
