package rescue

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"platter/block"
)

// tool returns the path of a program, which may lie outside a normal user's.
func tool(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"} {
		if _, err := os.Stat(dir + name); err == nil {
			return dir + name
		}
	}
	t.Skip("SKIPPED, this needs the program ", name)
	return ""
}

// mediumOf lays out a medium of made-up parts as Build does.
func mediumOf(t *testing.T, answers string) []byte {
	t.Helper()
	files := []file{{"platter/vmlinuz", bytes.Repeat([]byte("kernel"), 1<<18)}, {"platter/initrd.img", bytes.Repeat([]byte("x"), 3000)}, {"EFI/debian/grub.cfg", nil}}
	if answers != "" {
		files = append(files, file{AnswersName, []byte(answers)})
	}
	volume, err := formatFAT("PLATTER", 0x12345678, files, answersRoom)
	if err != nil {
		t.Fatal(err)
	}
	disk := make([]byte, espStart*sectorSize+len(volume)+(tableSize+1)*sectorSize)
	copy(disk[espStart*sectorSize:], volume)
	partition(disk, [16]byte{1, 2, 3})
	return disk
}

// Others' tools find nothing wrong with the tables, and read what is on it.
func TestOthersReadTheMedium(t *testing.T) {
	disk := mediumOf(t, "then = \"reboot\"\n")
	path := filepath.Join(t.TempDir(), "medium")
	volume := path + ".esp"
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(volume, disk[espStart*sectorSize:len(disk)-(tableSize+1)*sectorSize], 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := block.Look(path)
	if err != nil || d.Table == nil || d.Table.Type != "gpt" || len(d.Table.Partitions) != 2 || d.Table.Partitions[1].Content != "vfat" {
		t.Errorf("block: %+v, %v", d.Table, err)
	}
	if out, err := exec.Command(tool(t, "sgdisk"), "-v", path).CombinedOutput(); err != nil || !strings.Contains(string(out), "No problems found") {
		t.Errorf("sgdisk: %v %s", err, out)
	}
	if out, err := exec.Command(tool(t, "fsck.fat"), "-n", "-V", volume).CombinedOutput(); err != nil {
		t.Errorf("fsck.fat: %v %s", err, out)
	}
	for name, want := range map[string][]byte{"platter/answers": []byte("then = \"reboot\"\n"), "platter/vmlinuz": bytes.Repeat([]byte("kernel"), 1<<18), "EFI/debian/grub.cfg": nil} {
		out, err := exec.Command(tool(t, "mtype"), "-i", volume, "::"+name).Output()
		if err != nil || !bytes.Equal(out, want) {
			t.Errorf("%s: %d bytes, want %d: %v", name, len(out), len(want), err)
		}
	}
	// Its owner puts answers there later.
	answers := filepath.Join(t.TempDir(), "answers")
	if err := os.WriteFile(answers, bytes.Repeat([]byte("#"), 900<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool(t, "mcopy"), "-o", "-i", volume, answers, "::platter/answers").CombinedOutput(); err != nil {
		t.Errorf("mcopy: %v %s", err, out)
	}
	if !bytes.Equal(disk, mediumOf(t, "then = \"reboot\"\n")) {
		t.Error("the same files made other bytes")
	}
}

func TestNamesThatDoNotFitAreRefused(t *testing.T) {
	for _, name := range []string{"platter/a-long-name", "x.toml", ".cfg"} {
		if _, err := formatFAT("X", 1, []file{{name, nil}}, 0); err == nil {
			t.Errorf("%q is taken", name)
		}
	}
}

func TestAnswers(t *testing.T) {
	a, err := ParseAnswers([]byte("repository = \"s3:https://s3/b\"\nimage = \"latest\"\ntarget = [\"only\"]\nthen = \"reboot\"\n[environment]\nAWS_ACCESS_KEY_ID = \"id\"\n"))
	if err != nil || !a.Unattended() || a.Environment["AWS_ACCESS_KEY_ID"] != "id" {
		t.Fatalf("%+v, %v", a, err)
	}
	file, err := a.Override("quiet platter.answers=platter/other platter.image=web1/root@2026-01-31 platter.network=eth0,10.0.0.2/24,10.0.0.1 platter.target=a=/dev/sda,b=/dev/sdb console=tty0")
	if err != nil || file != "platter/other" || a.Image != "web1/root@2026-01-31" || a.Network != "eth0 10.0.0.2/24 10.0.0.1" || fmt.Sprint(a.Target) != "[a=/dev/sda b=/dev/sdb]" {
		t.Errorf("%q %+v, %v", file, a, err)
	}
	if a, err := ParseAnswers(nil); err != nil || a.Unattended() {
		t.Errorf("nothing: %+v, %v", a, err)
	}
	for name, text := range map[string]string{
		"a key nobody knows": "imagen = \"latest\"", "what comes after": "then = \"dance\"",
		"a variable of somebody else": "[environment]\nLD_PRELOAD = \"x\"", "no TOML": "image latest",
		"no certificate": "authority = \"trust me\"",
	} {
		if _, err := ParseAnswers([]byte(text)); err == nil {
			t.Errorf("%s is taken: %s", name, text)
		}
	}
	for _, line := range []string{"platter.imagen=latest", "platter.then=dance"} {
		if _, err := new(Answers).Override(line); err == nil {
			t.Errorf("%q is taken", line)
		}
	}
}

// What a module needs is loaded before it, also what it only asks for by word.
func TestIndexOfModules(t *testing.T) {
	modules := []*module{
		{name: "crc32c_generic", path: "crypto/crc32c_generic.ko", aliases: []string{"crypto-crc32c"}},
		{name: "ext4", path: "fs/ext4/ext4.ko", depends: []string{"jbd2"}, before: []string{"crc32c_generic", "elsewhere"}, aliases: []string{"fs-ext4"}},
		{name: "jbd2", path: "fs/jbd2/jbd2.ko", depends: []string{"crc32c_generic"}},
	}
	deps, aliases := index(modules)
	want := "kernel/crypto/crc32c_generic.ko: \nkernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/crypto/crc32c_generic.ko\nkernel/fs/jbd2/jbd2.ko: kernel/crypto/crc32c_generic.ko\n"
	if string(deps) != want {
		t.Errorf("modules.dep:\n%swant:\n%s", deps, want)
	}
	if want := "alias crypto-crc32c crc32c_generic\nalias fs-ext4 ext4\n"; string(aliases) != want {
		t.Errorf("modules.alias:\n%swant:\n%s", aliases, want)
	}
}
