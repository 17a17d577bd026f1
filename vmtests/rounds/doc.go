// Package rounds has the tests that image a guest's device by the program itself,
// over boots that end in order and by power cuts, and compare each image with a
// full read. They run in guests: make vm.
package rounds
