package block

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"
)

// crcEntries makes a header fit entries that were changed.
func crcEntries(g *gpt) {
	binary.LittleEndian.PutUint32(g.header[88:], crc32.ChecksumIEEE(g.entries))
	g.seal()
}

func TestHostileDiskOfTheFuzzerIsATable(t *testing.T) {
	b := hostileDisk()
	table, _ := Probe(bytes.NewReader(b), int64(len(b)), 512)
	if table == nil || table.Type != "gpt" || len(table.Partitions) != 1 {
		t.Errorf("table %+v", table)
	}
}
