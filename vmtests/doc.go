// Package vmtests proves the program on whole disks and whole machines: it
// images disks as they come, restores them, and starts what was restored.
//
// Its tests run the program as a person would. Those that need root, loop
// devices or an emulator say so and are skipped where there is none.
package vmtests
