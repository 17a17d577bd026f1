// Package running tests imaging the disk that the machine itself runs from. Its
// tests run in a guest.
package running
