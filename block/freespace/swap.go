package freespace

import "encoding/binary"

// swap keeps the first page, which says that there is swap: what was swapped
// out is of no use to who starts from the image. Swap that a sleeping machine
// lies in has another mark, and is not free.
func swap(v *volume) error {
	for page := int64(4096); page <= 65536; page *= 2 {
		if page > v.size() {
			break
		}
		b, err := v.bytes(0, int(page))
		if err != nil {
			return err
		}
		if string(b[page-10:]) != "SWAPSPACE2" {
			continue
		}
		version, last := binary.LittleEndian.Uint32(b[1024:]), int64(binary.LittleEndian.Uint32(b[1028:]))
		if version != 1 || last < 1 || (last+1)*page > v.size() {
			return unsure("swap of version %d with %d pages of %d bytes, in %d bytes", version, last+1, page, v.size())
		}
		return v.vacant(page, last*page)
	}
	return unsure("no mark of swap")
}
